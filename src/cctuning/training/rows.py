"""Tokenise a run's rows, and take them in the batches of `schedule.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from trl import SFTTrainer

from cctuning.connection import ConnectionConfig
from cctuning.data import Encoder, encode_dataset
from cctuning.data.chat import Settled, own_template, settle
from cctuning.data.encode import FEATURES
from cctuning.data.loading import has_thinking, in_schema, row_numbers
from cctuning.data.parallel.pairs import check_pairs
from cctuning.data.schema import Skipped
from cctuning.data.tables import is_checked
from cctuning.errors import UserError
from cctuning.training.config import CCConfig
from cctuning.training.schedule import Mixture, Schedule, as_rows, filler, held_out, shared_with

COLUMNS = ["input_ids", "labels", "text", "reference_input_ids", "reference_text", "reference_row", "row", "lang"]


class RowsTrainer(SFTTrainer):
    """An `SFTTrainer` that tokenises rows, references and parallel text, and takes them as a `Schedule` has it.

    A subclass calls `take_rows` before `SFTTrainer.__init__`, which tokenises.

    Attributes:
        chat: whether prompts are rendered with the chat template; None until the first rows decide.
        settled: the chat template as it is rendered, and saved with the tokenizer.
        notes: warnings about the rows, logged when training begins.
        skipped: rows left out, as (origin, reason), with `bad_rows: skip`.
        parallel: parallel text beside the answered rows, encoded; None if there is none, or nothing else.
        held: encoded pairs of parallel text that are kept out of training; None if there are none.
    """

    args: CCConfig
    chat: bool | None
    settled: Settled | None = None
    parallel: Dataset | None = None
    held: Dataset | None = None
    _pairs: Dataset | None = None  # parallel text in the schema
    _rows: Dataset  # of an epoch, as they were given
    _pack: bool  # there are no answered rows
    _schedule: Schedule
    _made: tuple[Any, Schedule | None] = (None, None)  # a schedule, and what it was made of
    _config: ConnectionConfig

    # -- tokenising --------------------------------------------------------------------------------------------------

    def take_rows(
        self, answered: Dataset | None, pairs: Dataset | None, args: CCConfig, config: ConnectionConfig
    ) -> Dataset:
        """Take answered rows and parallel text before they are tokenised, and return the rows of an epoch.

        Args:
            answered: None: parallel text alone is the epoch.
            config: of the connection, settled. Some pairs are held out where their alignment can be measured, with
                recorded references.
        """
        self.notes: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self._origins: dict[int, str] = {}
        self._pack, self._config = answered is None, config
        if pairs is None:
            assert answered is not None
            self._rows = answered
            return answered
        language, first = args.reference_language, 0
        if answered is not None:
            first = max(len(answered) - 1, *row_numbers(answered)) + 1
        reading: Any = {"required": True, "parallel": True, "bad_rows": args.bad_rows, "notes": self.notes}
        checked = is_checked(pairs)  # by `load_parallel`
        pairs, skipped = in_schema(pairs, language, "parallel_dataset", **reading)
        self._leave_out(skipped)
        if not checked:
            pairs, notes = check_pairs(pairs, language, "parallel_dataset")
            self.notes += notes
        self._pairs = pairs = pairs.select_columns(["prompt", "reference", "lang", "origin"])
        measured = config.connection == "align" and config.reference_weights == "start"
        out = held_out(pairs, language) if measured else []
        rows = as_rows(pairs.select(sorted({*range(len(pairs))} - {*out})), language)
        end = first + len(rows)
        rows = rows.add_column("row", list(range(first, end)))
        if out:
            self.held = pairs.select(out).add_column("row", list(range(end, end + len(out))))
        if answered is not None and (args.parallel_rows or args.align_first):
            self.parallel = rows
        self._rows = rows if answered is None else answered
        return self._rows

    def tokenise_parallel(self) -> None:
        """Tokenise the parallel text that `SFTTrainer.__init__` does not see."""
        for name in ("parallel", "held"):
            if (rows := getattr(self, name)) is not None:
                prepared = self._prepare_dataset(
                    rows, self.processing_class, self.args, False, None, "parallel_dataset"
                )
                setattr(self, name, prepared)
        self._pairs = None

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
    ) -> Dataset:
        # Compare objects, not names: an evaluation set may be called "train".
        answered = dataset is self._rows
        training = answered or dataset is self.parallel or dataset is self.held
        where = "train_dataset" if answered else name if training else f"eval_dataset ({name})"
        if "input_ids" in dataset.column_names:
            if not FEATURES.keys() <= {*dataset.column_names}:
                raise UserError(f"{where}: rows are tokenised already; give prompt and response, as text or messages.")
            return dataset
        dataset, skipped = in_schema(
            dataset,
            args.reference_language,
            where,
            required=answered and self._config.connection != "none" and self.parallel is None,
            bad_rows=args.bad_rows,
            notes=self.notes,
        )
        self._leave_out(skipped)
        if not training and all(response is None for response in dataset["response"]):
            raise UserError(f"{where}: no row has an answer, so there is no loss to evaluate; name answered rows.")
        if not training or len({*dataset["row"]}) < len(dataset):  # data sets put together have numbers twice
            dataset = dataset.remove_columns("row").add_column("row", [*range(len(dataset))])
        if self._pairs is not None and not training:
            self.notes += shared_with(dataset, self._pairs)
        if self.chat is None:
            self.chat = not isinstance(dataset[0]["prompt"], str) or processing_class.chat_template is not None
        if self.chat and own_template(processing_class) is not None:
            # Parallel text and evaluation rows are rendered as the answered rows are.
            thinking = has_thinking(dataset) if answered else None
            self.settled = settle(processing_class, None, args.chat_template_kwargs if answered else None, thinking)
            processing_class.chat_template = self.settled.template
            self.notes += [*self.settled.notes(), *self.settled.ignored()] if answered else []
        if training:
            self._origins |= dict(zip(dataset["row"], dataset["origin"], strict=True))
        # Rows in the reference language are their own reference where references keep the weights of the start.
        own = args.reference_language if training and self._config.reference_weights == "start" else None
        if answered and args.align_first and not args.parallel_rows and self._config.connection == "align":
            own, dataset = None, dataset.remove_columns("reference")  # the answered rows train alone
        encoded, left_out = encode_dataset(
            dataset,
            Encoder(
                processing_class,
                max_length=args.max_length,
                max_reference_length=args.max_reference_length or args.max_length,
                chat=self.chat,
                turns=args.train_turns,
                align_turns=self._config.align_turns,
            ),
            bad_rows=args.bad_rows,
            own_references=own,
            num_proc=args.dataset_num_proc,
            desc=f"Tokenising {name} rows",
            notes=self.notes,
        )
        self.skipped += left_out
        return encoded.shuffle(seed=args.seed) if training and args.shuffle_dataset else encoded

    def _leave_out(self, skipped: Sequence[Skipped]) -> None:
        self.skipped += [(origin, f"{field}: {reason}") for origin, field, reason in skipped]

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = COLUMNS

    # -- batches -----------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Dataset:
        """All rows that training reads: those of an epoch, then the parallel text beside them."""
        rows: Any = self.train_dataset
        return rows if self.parallel is None else concatenate_datasets([rows, self.parallel])

    def schedule(self) -> Schedule:
        """The batches of this process, as the options and rows are now."""
        rows: Any = self.train_dataset
        args, table, answered = self.args, self.table, 0 if self._pack else len(rows)
        options: dict[str, Any] = {
            "batch": args.train_batch_size,
            "strategy": args.train_sampling_strategy,
            "capacity": (args.max_length or 0) if args.packing else 0,
            "answered": answered,
            "beside": args.parallel_rows,
            "first": args.align_first,
            "dp_size": max(1, args.world_size),
            "grad_accum": args.gradient_accumulation_steps,
            "rank": args.process_index,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "drop_last": args.dataloader_drop_last,
        }
        known = (table._fingerprint, args.parallel_temperature, args.seed, options)
        if self._made[0] != known:
            languages = table["lang"][answered:]
            mixture = Mixture(languages, args.parallel_temperature, args.seed) if languages else None
            lengths = pc.list_value_length(table.with_format("arrow")[:]["input_ids"]).to_pylist()
            self._made = known, Schedule(lengths, mixture=mixture, **options)
        schedule = cast(Schedule, self._made[1])
        if not len(schedule):
            raise UserError(f"dataloader_drop_last: {len(rows)} rows do not fill one batch; leave it out.")
        return schedule

    def _get_train_sampler(self, train_dataset: Any = None) -> Schedule:
        self._schedule = self.schedule()
        return self._schedule

    def planned_steps(self) -> int:
        """Optimizer steps of the run, with those of `align_first`."""
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        return math.ceil(args.num_train_epochs * self.schedule().steps_an_epoch) + args.align_first

    def get_train_dataloader(self) -> Any:
        """As the parent's, over the whole table, with a generator for the workers' seeds that dropout does not use."""
        table = self.table if self.args.world_size <= 1 else concatenate_datasets([self.table, filler(self.table)])
        loader: Any = self._get_dataloader(
            table, "Training", self._train_batch_size, self._get_train_sampler, is_training=True
        )
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the parent's; the steps of `align_first` come on top of the epochs' (`max_steps` counts them)."""
        *others, _, total, in_epoch, steps = super().set_initial_training_values(args, dataloader)
        if args.max_steps <= 0:
            steps += args.align_first
        return *others, steps * total, total, in_epoch, steps

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *args: Any) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        if first := self.args.align_first:
            done = self.state.global_step
            epochs, steps = divmod(max(0, done - first), num_update_steps_per_epoch)
            steps += min(done, first) if epochs == 0 else 0
            batches = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
        return epochs, batches

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        # accelerate's set_epoch does not reach the sampler where batches are skipped.
        self._schedule.set_epoch(epoch)
        if epoch == 0:
            kwargs["steps_in_epoch"] += self.args.align_first * self.args.gradient_accumulation_steps
            kwargs["num_update_steps_per_epoch"] += self.args.align_first
        return super()._run_epoch(model, epoch, *args, **kwargs)
