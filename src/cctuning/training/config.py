"""CCConfig: TRL's SFTConfig with the options of rows with references and parallel text."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from trl import SFTConfig

from cctuning.errors import UserError
from cctuning.extras import available, require
from cctuning.languages import canonical
from cctuning.settings import check_values, option


@dataclass
class CCConfig(SFTConfig):
    """Training options: those of `trl.SFTConfig` and those below. The method's are in `ConnectionConfig`.

    One default differs: without an accelerator `bf16` is off, unless `use_cpu: true` is set with it.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "chat_template_kwargs"]

    RANGES = {
        **dict.fromkeys(("align_first", "parallel_rows", "eval_samples", "base_decay"), (0, math.inf)),
        **dict.fromkeys(("parallel_temperature", "early_stopping_patience"), (1, math.inf)),
        **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, math.inf)),
        "gradient_accumulation_steps": (1, math.inf),
        "connection_lr_scale": (1e-6, math.inf),
    }

    connection_lr_scale: float = option(
        2.0, "Learning rate of the connection's weights, as a multiple of learning_rate."
    )
    base_decay: float = option(
        0.0,
        "Decay of the trained weights towards their initial values (weight_decay is towards 0). Keeps "
        "English, and what the rows do not rehearse. 0: off. Needs a copy of the trained weights.",
    )
    align_first: int = option(
        0,
        "Train this many optimizer steps on parallel text alone (per_device_train_batch_size pairs a "
        "batch), then on the answered rows with parallel_rows pairs each; with connection: align and "
        "parallel_rows: 0 by plain SFT. One learning rate schedule spans both. max_steps includes these steps, "
        "num_train_epochs does not.",
    )
    parallel_rows: int = option(3, "Pairs of parallel text in a batch for each answered row. 0: none.")
    parallel_temperature: float = option(
        2.0,
        "The share of a language with n pairs is proportional to n^(1/temperature). 1: by size; higher "
        "values raise small languages.",
    )
    record_references: str = option(
        "auto",
        "Run the references once before training and read the result in each step (with "
        "reference_weights: start). auto: if any row has one. true: raise an error if there is nothing to record. "
        "false: run them in every step, through the current weights.",
        choices=["auto", "true", "false"],
    )
    record_dtype: str = option(
        "auto",
        "Precision of the recorded references on the disk. auto: bfloat16 where the model runs in bf16, else float32.",
        choices=["auto", "float32", "bfloat16"],
    )
    max_reference_length: int | None = option(
        None,
        "Maximum tokens of a reference. A longer one is an error and never cut, as its end is used. "
        "Unset: max_length.",
    )
    chat: bool | None = option(
        None,
        "Render prompts with the chat template (a plain prompt becomes one user message). Unset: true if "
        "the rows are messages or the tokenizer has a template.",
    )
    chat_template_kwargs: dict | str | None = option(
        None,
        "Arguments of the chat template, as a mapping: {enable_thinking: true}. They become the defaults "
        "of the saved template. Unset: thinking is off unless answers of the rows contain it.",
    )
    train_turns: str = option(
        "all",
        "Assistant turns of a conversation that carry loss. all: every turn (except those with train: "
        "false or weight: 0). last: only the last.",
        choices=["all", "last"],
    )
    bad_rows: str = option(
        "error",
        "error: stop at a row that cannot be used. skip: leave out such rows, and list them in run.json.",
        choices=["error", "skip"],
    )
    reference_language: str = option("en", "Language of the references, the model's strongest: en, fr, hi, ...")
    eval_samples: int = option(
        2,
        "cctuning train: at each evaluation, answer this many of its prompts in each language, in "
        "output_dir/samples.jsonl and TensorBoard. 0: off.",
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop when eval_loss has not fallen for this many evaluations, and keep the best weights. A "
        "checkpoint is then saved at each evaluation.",
    )
    log_connection: bool = option(False, "Also log each layer's mean decision (decision_layer_<number>).")
    padding_free: bool = option(
        False,
        "Run the rows of a batch end to end, without padding: the same rows, losses and gradients. Saves "
        "the most where lengths differ much; FlashAttention suits it best.",
    )
    packing: bool = option(
        False,
        "padding_free, with as many whole rows in a batch as fill per_device_train_batch_size times "
        "max_length tokens (with their parallel text, on average). A step then has more rows: lower the batch "
        "size or raise learning_rate.",
    )
    packing_strategy: str = option("bfd", "bfd: best-fit decreasing, which keeps rows whole; no other is supported.")

    def __post_init__(self) -> None:
        self.not_here: list[str] = []
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # avoids a warning
            # A recipe for a GPU also runs on a CPU. Some CPUs are fast in bf16: an explicit use_cpu keeps it.
            self.not_here = [name for name in ("bf16", "fp16", "tf32") if getattr(self, name)]
            if self.use_cpu and "bf16" in self.not_here:
                self.not_here.remove("bf16")
            for name in self.not_here:
                setattr(self, name, False if name != "tf32" else None)
            if self.bf16 is None:
                self.bf16 = False
        if self.early_stopping_patience is not None:
            self._stop_early()
        super().__post_init__()
        if "tensorboard" in (self.report_to or []) and not available("tensorboardX"):
            require("tensorboard", "report_to: tensorboard")
        self.reference_language = canonical(self.reference_language, "reference_language")
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"{name}: expected a number, got {value}.")
        if isinstance(self.record_references, bool):  # YAML's true
            self.record_references = str(self.record_references).lower()
        own = {one.name for one in fields(self)} - {one.name for one in fields(SFTConfig)}
        check_values(type(self), {name: getattr(self, name) for name in own | self.RANGES.keys()}, "")
        if self.max_steps == 0:
            raise UserError("max_steps: 0 trains nothing; leave it out to train num_train_epochs.")
        if self.max_steps < 0 and self.num_train_epochs <= 0:
            raise UserError(f"num_train_epochs: expected more than 0, got {self.num_train_epochs}; or set max_steps.")
        self._check_packing()
        if self.completion_only_loss is False:
            raise UserError(
                "completion_only_loss: only assistant turns carry loss, never the prompt; leave it unset (train_turns "
                "selects the turns)."
            )
        if self.truncation_mode != "keep_start":
            raise UserError("truncation_mode: rows are cut at their end only; leave it out, or raise max_length.")
        if self.dataset_text_field != "text":
            raise UserError("dataset_text_field: rows have a prompt and a response; map their columns in the source.")
        self.assistant_only_loss = False  # always so, but not by TRL's implementation
        if self.loss_type != "nll":
            raise UserError(f"loss_type: {self.loss_type} is not supported with a connection; use nll.")
        if self.label_smoothing_factor:
            raise UserError("label_smoothing_factor is not supported with a connection; set it to 0.")
        if 0 < self.max_steps <= self.align_first:
            raise UserError(
                f"align_first: {self.align_first} of max_steps: {self.max_steps} leave no step for the answered rows; "
                "raise max_steps, or align the parallel text alone (cctuning align)."
            )
        if self.auto_find_batch_size:
            raise UserError(
                "auto_find_batch_size: not supported, as the batches are planned before training; leave it out, and "
                "measure a batch size with --dry_run true."
            )
        for name in ("dispatch_batches", "split_batches"):
            if getattr(self.accelerator_config, name):
                raise UserError(
                    f"accelerator_config: {name} is not supported, as each process takes its own rows of the planned "
                    "batches; leave it out."
                )
        if isinstance(self.dataset_kwargs, dict) and self.dataset_kwargs.get("skip_prepare_dataset"):
            raise UserError("dataset_kwargs: skip_prepare_dataset is not supported; give prompts and responses.")

    def _check_packing(self) -> None:
        """Raise `UserError` for options that packing or padding_free exclude, and for orders that repeat rows."""
        strategy = str(getattr(self.train_sampling_strategy, "value", self.train_sampling_strategy))
        if strategy == "batch_rebalance":
            raise UserError("train_sampling_strategy: batch_rebalance repeats rows; use group_by_length, or packing.")
        if self.packing_strategy != "bfd":
            raise UserError(
                f"packing_strategy: {self.packing_strategy} cuts rows, and a row is aligned and scored whole; use bfd."
            )
        if self.eval_packing:
            raise UserError("eval_packing: not supported, rows are evaluated in batches as they come; leave it out.")
        if (self.packing or self.padding_free) and isinstance(self.pad_to_multiple_of, int):
            raise UserError("pad_to_multiple_of: there is no padding with packing or padding_free; leave it out.")
        if self.packing and self.max_length is None:
            raise UserError("packing: needs max_length, the tokens of a bin; set it.")
        if self.packing and strategy == "sequential":
            raise UserError("train_sampling_strategy: sequential: packing orders rows by length; leave one out.")

    def _stop_early(self) -> None:
        """Set the options that transformers needs to keep the best weights."""
        strategy = str(getattr(self.eval_strategy, "value", self.eval_strategy))
        if strategy == "no":
            raise UserError("early_stopping_patience: needs evaluations; set eval_strategy: steps or epoch.")
        self.load_best_model_at_end = True
        self.save_strategy = strategy
        if strategy == "steps":
            self.save_steps = self.eval_steps or self.logging_steps
