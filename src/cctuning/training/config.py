"""CCConfig: TRL's SFTConfig with the few options that paired rows add."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from trl import SFTConfig

from cctuning.errors import UserError


@dataclass
class CCConfig(SFTConfig):
    """Training options: all of `trl.SFTConfig`, and those below. Those of the method are in `ConnectionConfig`.

    One default differs: `bf16` is off on a machine without an accelerator, where it is slow.
    """

    connection_lr_scale: float = field(
        default=2.0, metadata={"help": "Learning rate of the connection's own parts, as a multiple of learning_rate."}
    )
    base_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the tuned weights towards where they started, as weight_decay is towards 0: keeps "
            "English and all else that no row rehearses. 0: off. Holds a copy of the tuned weights."
        },
    )
    parallel_rows: int = field(
        default=3, metadata={"help": "Pairs of the parallel text in a batch for each answered row; 0: none."}
    )
    parallel_temperature: float = field(
        default=2.0,
        metadata={
            "help": "Share of a language with n pairs: in proportion to n^(1/temperature). 1: by size; more raises "
            "the small ones."
        },
    )
    record_references: str = field(
        default="auto",
        metadata={
            "help": "Run the references once before training and read what they gave in each step (with "
            "reference_weights: start). auto: where the disk holds it. false: run them in every step.",
            "choices": ["auto", "true", "false"],
        },
    )
    max_reference_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest reference in tokens; a longer one is an error, never cut (its end is the anchor). Unset: "
            "max_length."
        },
    )
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "Render prompts with the chat template (a plain prompt becomes one user message). Unset: yes if "
            "the rows are messages or the tokenizer has a template."
        },
    )
    bad_rows: str = field(
        default="error",
        metadata={
            "help": "error: stop at a row that cannot be used. skip: leave such rows out, count and list them.",
            "choices": ["error", "skip"],
        },
    )
    reference_language: str = field(
        default="en", metadata={"help": "Language of the references (the model's strongest): en, fr, hi, ..."}
    )
    log_connection: bool = field(
        default=False,
        metadata={
            "help": "Also log each layer's mean decision (decision_layer_<number>), for TensorBoard and reports."
        },
    )
    profile_steps: int = field(
        default=0,
        metadata={
            "help": "Trace this many steps into output_dir/trace.json, after the first two; open it in "
            "https://ui.perfetto.dev. 0: off. A traced step is slower, and large: two or three tell all."
        },
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for, and a warning a run
            if self.bf16 is None:
                self.bf16 = False
        super().__post_init__()
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"{option.name}: expected a number, got {value}.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise UserError(f"num_train_epochs: expected more than 0, got {self.num_train_epochs}; or set max_steps.")
        if self.packing or self.padding_free:
            raise UserError(
                "packing / padding_free: true would part rows from their references; leave both off (group rows of "
                "like length with train_sampling_strategy: group_by_length instead)."
            )
        if self.assistant_only_loss or self.completion_only_loss is False:
            raise UserError(
                "assistant_only_loss / completion_only_loss: rows are prompt and response, and the response alone "
                "carries loss; leave both unset."
            )
        if self.loss_type != "nll":
            raise UserError(f"loss_type: {self.loss_type} is not supported beside the connection; use nll.")
        if self.label_smoothing_factor:
            raise UserError("label_smoothing_factor is not supported beside the connection; set it to 0.")
        for name, least in (("parallel_rows", 0), ("parallel_temperature", 1.0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        if isinstance(self.record_references, bool):  # as YAML reads a bare true
            self.record_references = str(self.record_references).lower()
        if self.record_references not in ("auto", "true", "false"):
            raise UserError(f"record_references: expected auto, true or false, got {self.record_references!r}.")
        if self.profile_steps < 0:
            raise UserError(f"profile_steps: expected a number of steps, or 0 for none, got {self.profile_steps}.")
        if self.connection_lr_scale <= 0:
            raise UserError(f"connection_lr_scale: expected a positive number, got {self.connection_lr_scale}.")
