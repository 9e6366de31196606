"""Tokenise rows, with the chat template that the trained model is saved with."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from cctuning.data import Encoder, encode_dataset
from cctuning.data.chat import Settled, own_template, settle
from cctuning.data.in_memory import has_thinking, in_schema
from cctuning.errors import UserError
from cctuning.training.config import CCConfig

COLUMNS = ["input_ids", "labels", "text", "reference_input_ids", "reference_text", "reference_row", "row"]


class TokenizingTrainer(SFTTrainer):
    """An `SFTTrainer` that tokenises rows, references and parallel text with `encode_dataset`.

    A subclass sets the attributes before `SFTTrainer.__init__`, which tokenises.

    Attributes:
        chat: whether prompts are rendered with the chat template; None until the first rows decide.
        settled: the chat template as it is rendered, and saved with the tokenizer.
        notes: warnings about the rows as the model sees them.
        skipped: rows left out, as (origin, reason), with `bad_rows: skip`.
        parallel: parallel text beside the answered rows; None if there is none, or nothing else.
    """

    chat: bool | None
    settled: Settled | None = None
    parallel: Dataset | None = None
    _answered: Dataset | None  # the training rows as they were given
    _connecting: bool
    _align_turns: str
    _own_references: bool  # rows in the reference language are their own reference

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self._origins: dict[int, str] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
    ) -> Dataset:
        if "input_ids" in dataset.column_names:
            return dataset
        # By identity, not by name: an evaluation set may be called "train".
        answered, training = dataset is self._answered, dataset in (self._answered, self.parallel)
        dataset, skipped = in_schema(
            dataset,
            args.reference_language,
            "train_dataset" if answered else name if training else f"eval_dataset ({name})",
            required=answered and self._connecting and self.parallel is None,
            bad_rows=args.bad_rows,
            notes=self.notes,
        )
        self.skipped += [(origin, f"{field}: {reason}") for origin, field, reason in skipped]
        if self.chat is None:
            self.chat = not isinstance(dataset[0]["prompt"], str) or processing_class.chat_template is not None
        if self.chat and own_template(processing_class) is not None:
            # Parallel text and evaluation rows are rendered as the answered rows are.
            thinking = has_thinking(dataset) if answered else None
            self.settled = settle(processing_class, None, args.chat_template_kwargs if answered else None, thinking)
            processing_class.chat_template = self.settled.template
            self.notes += self.settled.notes() if answered else []
        if training:
            self._origins |= dict(zip(dataset["row"], dataset["origin"], strict=True))
        encoded, left_out = encode_dataset(
            dataset,
            Encoder(
                processing_class,
                max_length=args.max_length,
                max_reference_length=args.max_reference_length or args.max_length,
                chat=self.chat,
                turns=args.train_turns,
                align_turns=self._align_turns,
            ),
            bad_rows=args.bad_rows,
            own_references=args.reference_language if training and self._own_references else None,
            num_proc=args.dataset_num_proc,
            desc=f"Tokenising {name} rows",
            notes=self.notes,
        )
        self.skipped += left_out
        return encoded.shuffle(seed=args.seed) if args.shuffle_dataset else encoded

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = COLUMNS


def ready_tokenizer(
    model: str | PreTrainedModel, args: CCConfig, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """`tokenizer`, or the model's own, with a pad token."""
    if tokenizer is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    if args.eos_token is not None and args.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = args.eos_token  # TRL sets it too, but only after the pad token is needed
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has neither a pad nor an eos token: set tokenizer.pad_token "
                "(or the recipe's eos_token) to a token of its vocabulary."
            )
        tokenizer.pad_token = tokenizer.eos_token  # padded positions carry no label
    return tokenizer
