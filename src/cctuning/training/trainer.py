"""CCTrainer: TRL's SFTTrainer on paired rows.

What differs from plain SFT is kept to four places: how rows are tokenised, what a batch holds, what the loss is, and
that the connection is saved beside the base and not inside it. Everything else (schedulers, PEFT, accelerate, logging,
resuming) is TRL's and transformers'.

The members of `SFTTrainer` and `Trainer` that are overridden although they are not public are listed in
`tests/training/test_internals.py`, which says when one of them changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning.connection import ConnectionConfig, Fit
from cctuning.data import PairedCollator, Reading, encode_dataset
from cctuning.data.chat import Settled, own_template, settle
from cctuning.data.handed import check_handed
from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.adaptive_model import AdaptiveModel
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.exportable import check_adapter_start
from cctuning.model.shards import ShardReader
from cctuning.model.starting_weights import StartingWeights
from cctuning.training import sharded
from cctuning.training.base_decay import BaseDecay, check_start
from cctuning.training.by_language import AlignmentByLanguage
from cctuning.training.card import write_model_card
from cctuning.training.config import CCConfig
from cctuning.training.epochs import EpochTrainer
from cctuning.training.logged import batch_metrics, watch_decisions
from cctuning.training.mixing import EpochOfMixture, MixingCollator, Mixture, as_rows
from cctuning.training.parallel import check_engine, check_launch, under_deepspeed
from cctuning.training.profiling import StepProfiler
from cctuning.training.recording import Recording, record_references
from cctuning.training.sampling import BalancedOrder
from cctuning.training.uneven import FILLER, fillers_at_the_end, without_repeats

COLUMNS = ["input_ids", "labels", "text", "reference_input_ids", "reference_text", "reference_row", "row"]


class CCTrainer(EpochTrainer):
    """Fine-tune a causal LM on rows with a reference (arXiv 2506.00875), or without one (plain SFT, same code).

    Args:
        model: a model id, a `PreTrainedModel` or a `PeftModel`; connected in place.
        args: training options.
        connection_config: the connection; None for its defaults, `ConnectionConfig(connection="none")` for plain SFT.
        train_dataset: rows with `prompt` (text or messages), `response` or `completion` (text or one message; null
            trains the alignment alone), `reference` or `prompt_<reference language>` (like `prompt`; null where the
            row is in the reference language), and optionally `lang`, `origin` and `row`, or in another layout that
            `cctuning.data.load_rows` reads; checked as there. Rows that name no `lang` and have no reference are
            taken to be in the reference language. With a `parallel_dataset` rows need no reference; None: there are
            no answered rows, and the parallel text is aligned alone (a language pack).
        parallel_dataset: parallel text without answers: `text`, `reference` (or `text_<reference language>`), `lang`.
            Each answered row brings `parallel_rows` of it into its batch.
        eval_dataset: the same, or a dict of such; its loss is the student pass's. Rows may lack a reference.
        processing_class: the tokenizer; None: the model's own.
        peft_config: LoRA on the base; None trains all weights.
        kwargs: the rest of `SFTTrainer`'s arguments.

    Attributes:
        connected: the `ConnectedModel`; `connected.merge_and_unload()` after training gives the plain checkpoint.
        chat: whether prompts were rendered with the chat template.
        fit: how well the matrix of the adaptive connection fits, after training.
        settled: the chat template as it was rendered, and saved with the tokenizer.
        notes: what a person should see of the rows as the model sees them.
        parallel: encoded parallel text beside the answered rows; None where there is none, or it is all there is.
        skipped: rows left out in tokenisation, as (origin, reason), where `bad_rows` is `skip`.
    """

    model: Any
    args: CCConfig
    _tag_names = ["trl", "sft", "cc-tuning"]
    _name = "CC-Tuning"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: CCConfig | None = None,
        connection_config: ConnectionConfig | None = None,
        *,
        train_dataset: Dataset | None = None,
        parallel_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else CCConfig("cc-tuning-output")
        check_launch(args)
        handed = {"train_dataset": train_dataset, "parallel_dataset": parallel_dataset, "eval_dataset": eval_dataset}
        for given, rows in handed.items():
            if rows is not None:
                check_handed(rows, given)
        multiple = args.pad_to_multiple_of if isinstance(args.pad_to_multiple_of, int) else None
        if processing_class is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        if args.eos_token is not None and args.eos_token in processing_class.get_vocab():
            processing_class.eos_token = args.eos_token  # TRL applies it too, but only after the pad token is wanted
        if processing_class.pad_token is None:
            if processing_class.eos_token is None:
                raise UserError(
                    f"tokenizer {processing_class.name_or_path!r} has neither a pad nor an eos token: set "
                    "tokenizer.pad_token (or the recipe's eos_token) to a token of its vocabulary."
                )
            processing_class.pad_token = processing_class.eos_token  # padded positions carry no label: nothing is lost
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.settled: Settled | None = None
        self.fit: Fit | None = None
        self.chat = args.chat
        settled = (connection_config or ConnectionConfig()).settled(not under_deepspeed(args))
        self._connecting, self._own_parallels = settled.connection != "none", settled.reference_weights == "start"
        self.parallel: Dataset | None = None
        self._has_parallel = parallel_dataset is not None
        if parallel_dataset is None and train_dataset is None:
            raise UserError("train_dataset / parallel_dataset: neither is given; there is nothing to train on.")
        if parallel_dataset is not None:
            train_dataset, self.parallel = self._with_parallel(train_dataset, parallel_dataset, args)
        self._training_rows = train_dataset
        self._start: StartingWeights | None = None
        self._rows_in_step: Tensor | int | None = None
        self._embedding: Tensor | None = None  # gathered, of the model as it is being saved
        self._origins: dict[int, str] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            data_collator=PairedCollator(processing_class.pad_token_id, multiple),
            **kwargs,
        )
        if self.parallel is not None:
            self.parallel = self._prepare_dataset(
                self.parallel, processing_class, self.args, False, None, "parallel_dataset"
            )
        if self.is_distributed_loading_by_transformers:
            raise UserError("model: transformers has dealt it out over processes (tp_plan, …); load it whole.")
        check_adapter_start(self.model)
        # Attached after PEFT: before it, PEFT would freeze the connection, and hooks would miss the LoRA's share.
        self.connected = ConnectedModel.attach(self.model, settled)
        self.connected.seed = args.seed
        self.connected.reference_language = args.reference_language
        self._decisions = watch_decisions(self.connected) if args.log_connection else {}
        check_engine(self.accelerator, self.model, settled.connection, args.optim)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError("nothing would train: the base is frozen and the connection has no part that learns.")
        self.recording: Recording | None = None
        self.records = self._record_references()
        self.by_language = self._watch_languages()
        self._keep_start(args.base_decay)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        if args.profile_steps:
            self.add_callback(StepProfiler(args.profile_steps, Path(str(args.output_dir))))
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the tokens of the whole accumulated step

    def _with_parallel(self, rows: Dataset | None, pairs: Dataset, args: CCConfig) -> tuple[Dataset, Dataset | None]:
        """The rows of an epoch, and the pairs that go with them: None where the pairs are the epoch."""
        if not self._connecting:
            raise UserError("parallel_dataset: connection: none reads no parallel text; use connection: align.")
        parallel = as_rows(pairs, args.reference_language, 0 if rows is None else len(rows))
        if rows is None:
            mixture = Mixture(parallel["lang"], args.parallel_temperature, args.seed)
            chosen = parallel.select(mixture.cycle(0)).remove_columns("row")
            return chosen.add_column("row", list(range(len(chosen)))), None
        return rows, parallel if args.parallel_rows else None

    def _record_references(self) -> bool:
        """What the layers are offered by all references; whether the rows say which is whose."""
        if self.connected.config.connection not in ("align", "gated"):
            return False
        parts = {"train": self.train_dataset, "parallel": self.parallel}
        sets = record_references(self, {name: part for name, part in parts.items() if part is not None})
        if sets is not None:
            self.train_dataset, self.parallel = sets["train"], sets.get("parallel")
        return sets is not None

    def _watch_languages(self) -> AlignmentByLanguage | None:
        """Of recorded parallel text, where the weights are whole."""
        rows: Any = self.train_dataset if self.parallel is None else self.parallel
        recorded = self.connected.recorded is not None and self.connected.aligner is not None
        if not (recorded and self._has_parallel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        watch = AlignmentByLanguage(self, rows)
        self.add_callback(watch)
        return watch

    def _keep_start(self, base_decay: float) -> None:
        """The weights before any checkpoint is loaded, for the options that go back to them."""
        wanted = self.connected.config.reference_weights
        check_start(base_decay, wanted, self.is_deepspeed_enabled)
        if not base_decay and (wanted != "start" or self.records):
            return
        self._start = start = StartingWeights(self.model, skip=ATTRIBUTE, later=self.is_fsdp_enabled)
        if base_decay:
            self.add_callback(BaseDecay(start, base_decay))
        if wanted == "start" and not self.records:
            self.connected.keep_start(start)

    # -- rows --------------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
    ) -> Dataset:
        if "input_ids" in dataset.column_names:
            return dataset
        # Not by its name: an evaluation set may be called train.
        answered, training = dataset is self._training_rows, dataset in (self._training_rows, self.parallel)
        required = answered and self._connecting and self.parallel is None
        itself = training and self._own_parallels
        where = "train_dataset" if answered else name if training else f"eval_dataset ({name})"
        reading = Reading.of(dataset.column_names, args.reference_language, required, itself, where)
        if self.chat is None:
            messages = reading.messages or not isinstance(dataset[0][reading.layout.prompt or "prompt"], str)
            self.chat = messages or processing_class.chat_template is not None
        if self.chat and own_template(processing_class) is not None:
            # Pairs and an evaluation set are asked as the answered rows are.
            thinking = reading.thinking(dataset) if answered else None
            self.settled = settle(processing_class, None, args.chat_template_kwargs if answered else None, thinking)
            processing_class.chat_template = self.settled.template
            self.notes += self.settled.notes() if answered else []
        if "row" not in dataset.column_names:
            dataset = dataset.add_column("row", list(range(len(dataset))))
        if "origin" in dataset.column_names and training:
            self._origins = dict(zip(dataset["row"], dataset["origin"], strict=True))
        encoded, skipped = encode_dataset(
            dataset,
            processing_class,
            max_length=args.max_length,
            max_reference_length=args.max_reference_length or args.max_length,
            chat=self.chat,
            turns=args.train_turns,
            bad_rows=args.bad_rows,
            reading=reading,
            num_proc=args.dataset_num_proc,
            desc=f"Tokenising {name} rows",
            notes=self.notes,
        )
        self.skipped += skipped
        return encoded.shuffle(seed=args.seed) if args.shuffle_dataset else encoded

    def get_train_dataloader(self) -> Any:
        """As the parent's; with parallel text each row brings its pairs."""
        if self.parallel is None:
            return super().get_train_dataloader()
        rows: Any = self.train_dataset
        plain: Any = self.data_collator
        mixture = Mixture(self.parallel["lang"], self.args.parallel_temperature, self.args.seed)
        places = {row: place for place, row in enumerate(sorted(rows["row"]))}
        mixing = MixingCollator(plain, self.parallel, mixture, self.args.parallel_rows, places)
        self.add_callback(EpochOfMixture(mixing))
        self.data_collator = mixing
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = COLUMNS

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As the parent's, no row twice; also counts the step's rows, by which the alignment is averaged."""
        if isinstance(self._order, BalancedOrder):
            epoch_iterator = fillers_at_the_end(epoch_iterator, self.accelerator, self._order.fills)
        elif not self.args.dataloader_drop_last:
            rows: Any = self.train_dataset
            each = 1 if self.parallel is None else 1 + self.args.parallel_rows
            epoch_iterator = without_repeats(epoch_iterator, self.accelerator, len(rows), each)
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = [batch for batch in batches if FILLER not in batch]
        if self.connected.aligner is not None:  # averaged over the rows that have a reference
            name = "reference_row" if self.records else "reference_index"
            count = torch.tensor(sum(int((batch[name] >= 0).sum()) for batch in own), device=device)
        else:
            count = torch.tensor(sum(len(batch["input_ids"]) for batch in own), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        self._rows_in_step = count
        return batches, num_items

    # -- loss --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of `ConnectedModel.forward` on a batch of `PairedCollator`."""
        training = self.model.training
        connected, filler = self.connected, inputs.pop(FILLER, False)
        connected.train(training)
        connected.step, connected.total_steps = self.state.global_step, max(self.state.max_steps, 1)
        outputs = connected(
            **inputs,
            num_items_in_batch=num_items_in_batch,
            num_rows_in_batch=self._rows_in_step if training and num_items_in_batch is not None else None,
            loss_only=not return_outputs,
            through=model,
        )
        if training and not bool(torch.isfinite(outputs.loss)):
            self._stop_at(inputs, outputs)
        if not training:
            self._by_language.add(inputs, outputs.student_row_loss)
        self._record(inputs, outputs, "train" if training else "eval", filler)
        loss = outputs.loss * 0 if filler else outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # DDP averages over ranks
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """As the parent's, with the student pass's logits where they are asked for."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only or self.compute_metrics is None:
                return self.compute_loss(model, inputs), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, outputs.logits, inputs["labels"]

    def _stop_at(self, inputs: dict[str, Any], outputs: Any) -> None:
        rows = inputs["row"].tolist()
        bad = [row for row, loss in zip(rows, outputs.row_loss, strict=True) if not torch.isfinite(loss)] or rows
        named = ", ".join(self._origins.get(row, f"row {row}") for row in bad[:8]) + (", …" if len(bad) > 8 else "")
        before = any(Path(str(self.args.output_dir)).glob("checkpoint-*"))
        kept = " Checkpoints written before are intact." if before else ""
        raise UserError(
            f"step {self.state.global_step + 1}: the loss is {outputs.loss.item()} at {named}; lower learning_rate, "
            f"or look at those rows.{kept}"
        )

    def _record(self, inputs: dict[str, Any], outputs: Any, mode: str, filler: bool) -> None:
        """Keep this batch's parts for the next log line; nothing of a filler."""
        gather, metrics = self.accelerator.gather, self._metrics[mode]
        for name, value in batch_metrics(outputs, gather, filler, self._decisions if mode == "train" else {}).items():
            metrics[name].append(value)
        if mode == "train":
            tokens = inputs["attention_mask"].sum()
            if self.connected.config.connection != "none" and "reference_attention_mask" in inputs:
                tokens = tokens + inputs["reference_attention_mask"].sum()
            self._total_train_tokens += gather(tokens * (not filler)).sum().item()
            metrics["num_tokens"] = [self._total_train_tokens]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; the adaptive connection's matrix is fitted on the training prompts when it is done."""
        result = super().train(*args, **kwargs)
        self.connected.base_trained = serialization.base_is_trained(self.connected)
        if isinstance(self.connected, AdaptiveModel):
            self.model.eval()
            loader = tqdm(self.get_train_dataloader(), desc="Fitting the transform", leave=False)
            self.fit = self.connected.eval().fit_transform(self._prepare_inputs(inputs) for inputs in loader)
        return result

    # -- optimiser, checkpoints --------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """As the parent's, with groups of their own (and learning rate) for the connection's parameters."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            named = (self.model if model is None else model).named_parameters()
            ours = {id(parameter) for name, parameter in named if ATTRIBUTE in name}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in ours]
                if own:
                    group["params"] = [p for p in group["params"] if id(p) not in ours]
                    scale = self.args.connection_lr_scale
                    optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * scale})
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's; sharded weights are gathered and written a layer at a time (sharded.py)."""
        if self.connected.connections:
            self._embedding = sharded.whole_embedding(self.model)
        if not sharded.is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        directory, writer = Path(output_dir or str(self.args.output_dir)), self.args.should_save
        if self._is_peft():
            mine = (
                (name, p) for name, p in self.model.named_parameters() if p.requires_grad and ATTRIBUTE not in name
            )
            super()._save(str(directory), {name: sharded.whole(parameter) for name, parameter in mine})
        else:
            sharded.save_base(self.model, directory, skip=ATTRIBUTE, plain=not _internal_call, writer=writer)
            if writer and self.processing_class is not None:
                self.processing_class.save_pretrained(str(directory))
        if self._embedding is not None:
            sharded.save_connection(self.connected, directory, self._embedding, writer=writer)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        state = self.model.state_dict() if state_dict is None else state_dict
        theirs = {name: tensor for name, tensor in state.items() if ATTRIBUTE not in name}
        super()._save(str(directory), state_dict=theirs)
        if self.args.should_save and self.connected.connections:
            ours = sharded.connection_state({name: tensor for name, tensor in state.items() if ATTRIBUTE in name})
            trained = serialization.base_is_trained(self.connected)
            serialization.save_state(self.connected, directory, ours, trained, self._embedding)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharded.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharded.write_optimizer(self.optimizer, self.model, Path(output_dir), writer=self.args.should_save)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (sharded.is_sharded(self.model) or sharded.has_optimizer(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharded.read_optimizer(self.optimizer, self.model, Path(checkpoint))
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if sharded.is_sharded(self.model):
            self._load_sharded(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = Path(resume_from_checkpoint) / TRAINER_STATE_NAME
        logged = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
        self._total_train_tokens = max((entry.get("num_tokens", 0) for entry in logged), default=0)
        self._load_connection(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if sharded.is_sharded(self.model):
            self._load_sharded(Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()
        self._load_connection(str(self.state.best_model_checkpoint))

    def _load_sharded(self, checkpoint: Path) -> None:
        if self._start is not None:
            self._start.take()
        if self.recording is not None:
            self.recording.make()
        if self._is_peft():
            sharded.read_adapter(self.model, checkpoint / SAFETENSORS_WEIGHTS_NAME, self.model.active_adapter)
        else:
            sharded.read_weights(self.model, checkpoint, skip=ATTRIBUTE)

    def _load_connection(self, checkpoint: str) -> None:
        if not self.connected.connections:
            return
        files = ShardReader(Path(checkpoint), serialization.WEIGHTS_STEM)
        self.connected.load_connection_state(files, str(files.directory / serialization.WEIGHTS_FILE))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [key for key in load_result.missing_keys if ATTRIBUTE not in key]  # those are loaded by themselves
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _is_peft(self) -> bool:
        return hasattr(self.model, "peft_config")

    def create_model_card(  # type: ignore[override]  # TRL's signature, which differs from transformers' too
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md with the method, its options and its citation beside the model."""
        if self.is_world_process_zero():
            directory = Path(str(self.args.output_dir))
            write_model_card(
                directory / "README.md",
                self.connected,
                model_name=model_name or directory.name,
                dataset_name=dataset_name,
                tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
                args=self.args,
                peft=self._is_peft(),
            )
