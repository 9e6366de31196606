"""Options of a run beside the connection's and the trainer's: the model, the rows, and what is tuned.

The adapter options have TRL's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from cctuning.errors import UserError
from cctuning.extras import require

ALL_LINEAR = "all-linear"


@dataclass
class AdapterOptions:
    """What `tune: lora` trains, and on what."""

    lora_rank: int = field(default=16, metadata={"help": "tune: lora: rank."})
    lora_alpha: int = field(default=32, metadata={"help": "tune: lora: alpha."})
    lora_dropout: float = field(default=0.0, metadata={"help": "tune: lora: dropout."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "tune: lora: modules by name, or one regular expression of their full names; "
            "unset: every linear layer of the decoder."
        },
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata={"help": "tune: lora: parameters by name, for experts that are one tensor."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "tune: lora: modules trained whole beside the LoRA; exported by a fold."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "tune: lora: scale by alpha / sqrt(rank) (rsLoRA)."})
    use_dora: bool = field(default=False, metadata={"help": "tune: lora: DoRA; exported by a fold."})
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "tune: lora: hold the frozen base in 4 bits (QLoRA; needs bitsandbytes). An export is for the "
            "unquantised base."
        },
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "tune: lora: hold the frozen base in 8 bits (needs bitsandbytes)."}
    )
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "load_in_4bit: kind of 4-bit numbers.", "choices": ["nf4", "fp4"]}
    )
    use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "load_in_4bit: quantise the scales too, half a bit a weight less."}
    )

    def check_adapter(self, tune: str) -> None:
        """Raise `UserError` for adapter options that cannot go together, or with `tune`."""
        for name in ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("load_in_4bit and load_in_8bit exclude each other; choose one.")
        if tune != "lora" and (self.load_in_4bit or self.load_in_8bit):
            which = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            raise UserError(
                f"{which}: a quantised base cannot be trained or saved itself, and tune is {tune}; set tune: lora."
            )
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise UserError(f"bnb_4bit_quant_type: {self.bnb_4bit_quant_type!r} is not one of nf4, fp4.")
        for name in ("lora_rank", "lora_alpha"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}.")

    def adapter_given(self) -> list[str]:
        """Names of the adapter options that differ from their defaults."""
        return [one.name for one in fields(AdapterOptions) if getattr(self, one.name) != one.default]

    def lora(self) -> LoraConfig:
        """PEFT's config."""
        targets: list[str] | str = self.lora_target_modules or ALL_LINEAR
        if self.lora_target_parameters and not self.lora_target_modules:
            targets = []
        if isinstance(targets, list) and len(targets) == 1 and (targets[0] == ALL_LINEAR or not _is_name(targets[0])):
            targets = targets[0]
        if isinstance(targets, str) and targets != ALL_LINEAR:
            try:
                re.compile(targets)
            except re.error as error:
                raise UserError(f"lora_target_modules: {targets!r} is no regular expression: {error}.") from error
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=targets,
            target_parameters=self.lora_target_parameters,
            modules_to_save=self.lora_modules_to_save,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )

    def quantisation(self, dtype: str) -> BitsAndBytesConfig | None:
        """How the base is quantised as it is read.

        Args:
            dtype: of the run's weights; products are taken in it.
        """
        if not (self.load_in_4bit or self.load_in_8bit):
            return None
        require("bitsandbytes", "load_in_4bit" if self.load_in_4bit else "load_in_8bit")
        if self.load_in_8bit:
            return BitsAndBytesConfig(load_in_8bit=True)
        compute: Any = getattr(torch, dtype, None) if dtype != "auto" else torch.bfloat16
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.use_bnb_nested_quant,
        )


@dataclass
class RunOptions(AdapterOptions):
    """What `cctuning train` runs on. YAML keys and flags of the same names."""

    model: str = field(default="", metadata={"help": "Directory or hub name of the base model."})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's own."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the hub."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "dtype of the weights: float32 (full fine-tuning, with bf16 autocast where the machine has it), "
            "bfloat16 (LoRA on a large base), or auto."
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2, eager, ..."})
    data: list[str] = field(  # the type that the command line reads; a recipe may also hold mappings
        default_factory=list,
        metadata={
            "help": "Training rows: files, directories or hub names; in YAML also mappings (path, lang, ...).",
        },
    )
    parallel: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parallel text without answers, of the languages to reach: JSON lines, TSV, TMX, two plain files, "
            "hub names; in YAML also mappings (path, lang, ...). With data each row brings `parallel_rows` of it; "
            "without, it is aligned alone: a language pack.",
        },
    )
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Rows for the evaluation loss, likewise."})
    tune: str = field(
        default="full",
        metadata={
            "help": "What learns beside the connection: full (all weights), lora, or connection (nothing else).",
            "choices": ["full", "lora", "connection"],
        },
    )

    dry_run: bool = field(
        default=False,
        metadata={"help": "Say what the run would do, its time and memory measured on a batch, and stop there."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.data, (str, dict)):
            self.data = [self.data]
        if isinstance(self.parallel, (str, dict)):
            self.parallel = [self.parallel]
        if isinstance(self.eval_data, (str, dict)):
            self.eval_data = [self.eval_data]
        if self.tune not in ("full", "lora", "connection"):
            raise UserError(f"tune: {self.tune!r} is not one of full, lora, connection.")
        self.check_adapter(self.tune)


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+", text) is not None
