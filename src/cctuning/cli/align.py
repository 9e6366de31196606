"""`cctuning align MODEL --parallel FILE … --output_dir DIR [--any-option value]`: a language pack.

The alignment alone, without any answered row. What comes out is a plain checkpoint (or a LoRA, with `--tune lora`),
and any SFT on English rows can start from it. `cctuning train --parallel FILE …` without `--data` is the same.
"""

from __future__ import annotations

from cctuning.cli import train
from cctuning.errors import UserError


def main(argv: list[str]) -> None:
    """As `cctuning train`, with the model first and its options for parallel text alone."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model", argv[0], *argv[1:]]
    for flag in argv:
        if flag.split("=")[0] in ("--data", "--eval_data"):
            raise UserError(f"{flag}: align reads parallel text alone; to train on answers too, use cctuning train.")
    train.main(argv, verb="align")
