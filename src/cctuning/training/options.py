"""The options of a run that are neither the connection's nor the trainer's: which model, which rows, what is tuned."""

from __future__ import annotations

from dataclasses import dataclass, field

from cctuning.errors import UserError
from cctuning.training.adapters import AdapterOptions


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
