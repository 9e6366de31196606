"""Options of a run besides the connection's and the trainer's: the model, the rows, and what is tuned.

The adapter options have the names of TRL's `ModelConfig`, except `lora_rank` (`lora_r` there).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedModel

from cctuning.errors import UserError
from cctuning.extras import require
from cctuning.model.sites import text_parts
from cctuning.settings import check_values, option

ALL_LINEAR = "all-linear"


@dataclass
class AdapterOptions:
    """Options of `tune: lora`."""

    RANGES = {"lora_rank": (1, math.inf), "lora_alpha": (1, math.inf)}

    lora_rank: int = option(16, "tune: lora: rank.")
    lora_alpha: int = option(32, "tune: lora: alpha.")
    lora_dropout: float = option(0.0, "tune: lora: dropout.")
    lora_target_modules: list[str] | None = option(
        None,
        "tune: lora: names of modules, or one regular expression of their full names. "
        "Unset: all linear layers of the decoder.",
    )
    lora_target_parameters: list[str] | None = option(
        None, "tune: lora: names of parameters, for experts in one tensor."
    )
    lora_modules_to_save: list[str] | None = option(
        None, "tune: lora: modules trained in full besides the LoRA; with connection: gated exports merged only."
    )
    use_rslora: bool = option(False, "tune: lora: scale by alpha / sqrt(rank) (rsLoRA).")
    use_dora: bool = option(False, "tune: lora: DoRA; with connection: gated exports merged only.")
    load_in_4bit: bool = option(
        False,
        "tune: lora: load the frozen base in 4 bits (QLoRA; needs bitsandbytes). Exports are for the "
        "unquantised base.",
    )
    load_in_8bit: bool = option(False, "tune: lora: load the frozen base in 8 bits (needs bitsandbytes).")
    bnb_4bit_quant_type: str = option("nf4", "load_in_4bit: 4-bit data type.", choices=["nf4", "fp4"])
    use_bnb_nested_quant: bool = option(False, "load_in_4bit: quantise the scales too (0.4 bits per weight less).")

    def check_adapter(self, tune: str) -> None:
        """Raise `UserError` for adapter options that exclude each other, or that `tune` excludes."""
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("load_in_4bit and load_in_8bit exclude each other; set one.")
        if tune != "lora" and (self.load_in_4bit or self.load_in_8bit):
            which = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            raise UserError(
                f"{which}: with tune: {tune} the base is trained or saved, which a quantised one cannot be; set "
                "tune: lora."
            )

    def adapter_given(self) -> list[str]:
        """Names of the adapter options that differ from their defaults."""
        return [one.name for one in fields(AdapterOptions) if getattr(self, one.name) != one.default]

    def lora(self, model: PreTrainedModel, revision: str | None = None) -> LoraConfig:
        """PEFT's config for `model`, the base; `revision` is that on the hub. No LoRA beside the text part of a
        multimodal model, where it would never change."""
        targets: Any = self.lora_target_modules or ([] if self.lora_target_parameters else [ALL_LINEAR])
        if len(targets) == 1 and (targets[0] == ALL_LINEAR or not re.fullmatch(r"[\w.-]+", targets[0])):
            targets = targets[0]  # PEFT reads text as a regular expression of full names
            try:
                re.compile(targets)
            except re.error as error:
                raise UserError(f"lora_target_modules: {targets!r} is no regular expression: {error}.") from error
        text = "|".join(map(re.escape, text_parts(model)))
        return LoraConfig(
            task_type="CAUSAL_LM",
            exclude_modules=rf"(?!({text})(\.|$)).*" if text else None,
            revision=revision,
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
        """transformers' config of the base's quantisation; `dtype` is that of weights and computation."""
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
    """Model, rows and tuning of `cctuning train`. YAML keys and flags have the same names."""

    model: str = option("", "Directory or hub name of the base model.")
    tokenizer: str | None = option(None, "Tokenizer. Unset: the model's own.")
    revision: str | None = option(None, "Revision of the model on the hub.")
    dtype: str = option(
        "float32",
        "dtype of the weights: float32 (full fine-tuning, with bf16 autocast on accelerators), bfloat16 "
        "(LoRA on a large base), or auto.",
    )
    attn_implementation: str | None = option(None, "sdpa, flash_attention_2, eager, ...")
    data: list[str] = option(
        [], "Training rows: files, directories, hub names, or mappings as in '{path: FILE, lang: sw}'."
    )
    parallel: list[str] = option(
        [],
        "Parallel text without answers, in the languages to reach: JSON Lines, TSV, TMX, two plain files, "
        "hub names, mappings as in data. With data, parallel_rows of it go with each row; "
        "without, it is aligned alone (a language pack).",
    )
    eval_data: list[str] = option([], "Evaluation rows, named like data.")
    tune: str = option(
        "full",
        "What is trained besides the connection: full (all weights), lora, or connection (nothing else).",
        choices=["full", "lora", "connection"],
    )

    dry_run: bool = option(False, "Print what the run would do, its time and memory measured on a batch, and stop.")

    def __post_init__(self) -> None:
        rows = ("data", "parallel", "eval_data")
        for name in (*rows, "lora_target_modules", "lora_target_parameters", "lora_modules_to_save"):
            if isinstance(getattr(self, name), (str, dict)):
                setattr(self, name, [getattr(self, name)])
        check_values(type(self), {name: value for name, value in vars(self).items() if name not in rows}, "")
        self.check_adapter(self.tune)
