"""CCTrainer: TRL's SFTTrainer for rows with references and parallel text.

Rows and batches are in rows.py, files in saving.py, recorded references in recording.py; the loss is here.
`tests/training/test_internals.py` lists the private members of TRL and transformers that are overridden, and fails
when one of them changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import RecordedReferences
from cctuning.data import PairedCollator
from cctuning.data.loading import check_dataset
from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.adaptive import Fit
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.loading import load_tokenizer
from cctuning.model.recorded import Prompts, record
from cctuning.model.runner import instance_state, restore_instance
from cctuning.model.sites import unwrap
from cctuning.training import checks
from cctuning.training.callbacks import AlignmentByLanguage, BaseDecay
from cctuning.training.config import CCConfig
from cctuning.training.metrics import EvaluationLoss, batch_metrics, undisturbed
from cctuning.training.recording import UNREAD, prepare_references
from cctuning.training.saving import SavingTrainer

logger = logging.getLogger(__name__)


class CCTrainer(SavingTrainer):
    """Fine-tune a causal LM on rows with a reference (arXiv 2506.00875), or without one (plain SFT, same code).

    Args:
        model: a model id, a `PreTrainedModel` or a `PeftModel`; connected in place.
        args: training options.
        connection_config: the connection; None for its defaults, `ConnectionConfig(connection="none")` for plain SFT.
        train_dataset: rows with `prompt` (text or messages), `response` or `completion` (text or one message; null
            trains the alignment alone), `reference` or `prompt_<reference language>` (like `prompt`; null if the row
            is in the reference language), and optionally `lang`, `origin` and `row`, or in another layout that
            `cctuning.data.load_rows` reads; checked as there. Rows without `lang` and reference are taken to be in
            the reference language. With a `parallel_dataset` rows need no reference; None: there are no answered
            rows, and only the parallel text is aligned (a language pack).
        parallel_dataset: parallel text without answers: `text`, `reference` (or `text_<reference language>`), `lang`;
            checked as by `cctuning.data.load_parallel`, which reads other layouts.
            Each answered row brings `parallel_rows` of it into its batch.
        eval_dataset: the same as `train_dataset`, or a dict of such; its loss is the student pass's. Rows may lack a
            reference.
        processing_class: the tokenizer; None: the model's own.
        peft_config: LoRA on the base; None trains all weights.
        kwargs: other arguments of `SFTTrainer`.

    Attributes:
        connected: the `ConnectedModel`; `connected.merge_and_unload()` after training gives the plain checkpoint.
        fit: how well the matrix of the adaptive connection fits, after training.
        by_language: the alignment of parallel text; None without any or without a recording.
        chat, settled, notes, skipped, parallel, held: see `RowsTrainer`.
    """

    args: CCConfig
    by_language: AlignmentByLanguage | None = None
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
        options = {"args": (args, CCConfig), "connection_config": (connection_config, ConnectionConfig)}
        for option, (value, kind) in options.items():
            if value is not None and not isinstance(value, kind):
                raise UserError(f"{option}: expected a {kind.__name__}, got {type(value).__name__}.")
        checks.check_launch(args)
        for name in ("compute_loss_func", "formatting_func", "data_collator"):
            if kwargs.get(name) is not None:
                raise UserError(f"{name}: not supported: loss and batches are the connection's; leave it out.")
        handed = {"train_dataset": train_dataset, "parallel_dataset": parallel_dataset, "eval_dataset": eval_dataset}
        for given, rows in handed.items():
            if rows is not None:
                check_dataset(rows, given)
        checks.check_best(args.metric_for_best_model, eval_dataset)
        if processing_class is None:
            source: Any = model if isinstance(model, str) else model.config.name_or_path
            processing_class = load_tokenizer(source, trust_remote_code=args.trust_remote_code)
        self.fit: Fit | None = None
        self.chat = args.chat
        self._eval_losses = EvaluationLoss()
        self._rows_in_step: Tensor | int | None = None
        settled = (connection_config or ConnectionConfig()).settled(args.record_references != "false")
        if parallel_dataset is None and train_dataset is None:
            raise UserError("train_dataset / parallel_dataset: neither is given; there is nothing to train on.")
        if parallel_dataset is not None and settled.connection == "none":
            raise UserError("parallel_dataset: connection: none reads no parallel text; use connection: align.")
        if parallel_dataset is None and args.align_first:
            raise UserError("align_first: needs parallel text (parallel_dataset / --parallel).")
        if train_dataset is None and args.align_first:
            raise UserError("align_first: there are no answered rows to come after the parallel text; leave it out.")
        rows = self.take_rows(train_dataset, parallel_dataset, args, settled)
        before = instance_state(unwrap(model)) if isinstance(model, nn.Module) else {}
        packs = args.packing, args.padding_free
        args.packing = args.padding_free = False  # TRL supports them with its own collator only
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=rows,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=peft_config,
                **kwargs,
            )
        except ValueError as error:
            if "adapter to `lm_head`" not in str(error):
                raise
            raise UserError(
                "lora_target_modules: lm_head: TRL takes no LoRA on the output embedding; leave it out, or train that "
                "in full (lora_modules_to_save: [lm_head])."
            ) from error
        finally:
            args.packing, args.padding_free = packs
        multiple = args.pad_to_multiple_of if isinstance(args.pad_to_multiple_of, int) else None
        self.data_collator = PairedCollator(self.processing_class.pad_token_id, multiple)
        restore_instance(unwrap(self.model), before)  # removes TRL's fused head, which is not used here
        self.tokenise_parallel()
        if self.is_distributed_loading_by_transformers:
            raise UserError("model: transformers has distributed it over processes (tp_plan, ...); load it whole.")
        checks.check_adapter_start(self.model)
        self.notes += checks.freeze_beside_text(self.model)
        # Attached after PEFT: before it, PEFT would freeze the connection, and hooks would miss the LoRA's share.
        self.connected = ConnectedModel.attach(self.model, settled)
        self.connected.seed = args.seed
        self.connected.reference_language = args.reference_language
        self.connected.padding_free = args.packing or args.padding_free
        if self.connected.padding_free and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Under autocast, without which FlashAttention cannot run fp32 weights. Sharded ones: in the first step.
            with self.accelerator.autocast():
                self.connected.check_padding_free()
        checks.check_engine(self.accelerator, self.model, settled.connection, args.optim, args.base_decay)
        checks.check_sizes(self)
        checks.check_weights(self.connected, self.optimizer)
        self._planned = self.planned_steps()
        if settled.connection in ("align", "gated"):
            prepare_references(self, parallel_dataset is not None)
        if args.base_decay:
            self._decay = BaseDecay(self.model, args.base_decay, later=self.is_fsdp_enabled)
            self.add_callback(self._decay)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the tokens of the whole accumulated step

    # -- references --------------------------------------------------------------------------------------------------

    def record(self, prompts: Prompts, **options: Any) -> RecordedReferences:
        """`cctuning.model.recorded.record` with the precision of training."""
        with self.accelerator.autocast():
            return record(self.connected, prompts, **options)

    def make_recording(self) -> None:
        """Record before a checkpoint is loaded; weights that are to be sharded are not there yet."""
        if self.recording is None or self.recording.sharded or self.recording.done:
            return
        partial = 0 < self.recording.rows < len(self.table)
        if partial and self.planned_steps() > self._planned:
            raise UserError("max_steps, num_train_epochs: raised after CCTrainer was made; make another.")
        self.recording.make()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As the parent's; also counts the step's rows, over which the alignment is averaged."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        name = "row"
        if self.connected.aligned:  # averaged over the rows that have a reference
            name = "reference_row" if self.recording and self.recording.whole else "reference_index"
        rows = [row for batch in batches for row in batch[name].tolist()]
        assert UNREAD not in rows, "a row whose reference is not recorded"
        count = torch.tensor(sum(row >= 0 for row in rows), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        self._rows_in_step = count.clamp(min=1)  # 0 where a process that counts its own rows has none left
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
        connected = self.connected
        filler = not bool((inputs["row"] >= 0).any())  # no row is left for this process
        connected.train(training)
        first = self.args.align_first  # steps of parallel text alone, which are before step 0 of the schedule
        connected.step, connected.total_steps = self.state.global_step - first, max(self.state.max_steps - first, 1)
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
            self._eval_losses.add(inputs, outputs)
        self._record(inputs, outputs, "train" if training else "eval", filler)
        loss = outputs.loss * 0 if filler else outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # DDP averages over processes
        return (loss, outputs) if return_outputs else loss

    def _stop_at(self, inputs: dict[str, Any], outputs: Any) -> None:
        rows = inputs["row"].tolist()
        bad = [row for row, loss in zip(rows, outputs.row_loss, strict=True) if not torch.isfinite(loss)] or rows
        named = ", ".join(self._origins.get(row, f"row {row}") for row in bad[:8]) + (", ..." if len(bad) > 8 else "")
        before = any(Path(str(self.args.output_dir)).glob("checkpoint-*"))
        kept = " Checkpoints written before are intact." if before else ""
        raise UserError(
            f"step {self.state.global_step + 1}: the loss is {outputs.loss.item()} at {named}; lower learning_rate, "
            f"or check those rows.{kept}"
        )

    def _record(self, inputs: dict[str, Any], outputs: Any, mode: str, filler: bool) -> None:
        """Keep the batch's metrics for the next log line."""
        gather, metrics = self.accelerator.gather, self._metrics[mode]
        logs_layers = mode == "train" and self.args.log_connection and self.connected.config.connection == "gated"
        layers = self.connected.layers if logs_layers else []
        for name, value in batch_metrics(outputs, gather, filler, layers).items():
            if mode == "eval" and name in ("student_loss", "fused_loss", "align_loss"):
                continue  # by row: EvaluationLoss
            metrics["lm_loss" if name == "student_loss" and self.connected.config.plain else name].append(value)
        if mode == "train":
            tokens = inputs["attention_mask"].sum()
            if self.connected.config.connection != "none" and "reference_attention_mask" in inputs:
                own = inputs["reference_index"]  # counted for each row, so that the sum does not depend on the batches
                tokens = tokens + inputs["reference_attention_mask"].sum(dim=1)[own[own >= 0]].sum()
            self._total_train_tokens += gather(tokens * (not filler)).sum().item()
            metrics["num_tokens"] = [self._total_train_tokens]

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the parent's. Training continues as if there had been no evaluation."""
        with undisturbed():
            return super().evaluate(*args, **kwargs)

    def predict(self, test_dataset: Dataset, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, of rows as `evaluate` takes them; the predictions are the logits of the student pass."""
        rows = self._prepare_dataset(test_dataset, self.processing_class, self.args, False, None, "test")
        with undisturbed():
            output = super().predict(rows, *args, **kwargs)
        self._metrics["eval"].clear()  # else they would be in the next evaluation
        return output

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, with the loss of each language among the metrics; references are recorded before."""
        self.make_recording()
        self._eval_losses.start(dataloader.dataset)
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        assert output.metrics is not None
        output.metrics.update(self._eval_losses.result(kwargs.get("metric_key_prefix", "eval")))
        return output

    # -- training ----------------------------------------------------------------------------------------------------

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

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; references are recorded before, and an adaptive connection's matrix is fitted after."""
        for note in self.notes:
            logger.warning(note)
        self.make_recording()
        result = super().train(*args, **kwargs)
        self.connected.base_trained = serialization.base_is_trained(self.connected)
        with self.accelerator.autocast():
            self.fit = self.connected.fit_transform(self._training_batches())
        return result

    def _training_batches(self) -> Iterator[dict[str, Any]]:
        for inputs in tqdm(self.get_train_dataloader(), desc="Fitting the transform", leave=False):
            yield self._prepare_inputs(inputs)
