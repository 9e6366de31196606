"""`cctuning align MODEL --parallel FILE ... --output_dir DIR [--any-option value]`: make a language pack.

Trains on parallel text alone, without answered rows. The result is a plain checkpoint (or a LoRA, with `--tune lora`)
from which any SFT on English rows can start. The same as `cctuning train --parallel FILE ...` without `--data`.
"""

from __future__ import annotations

from cctuning.cli import train


def main(argv: list[str]) -> None:
    """As `cctuning train`, with the model as first argument and without rows."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model", argv[0], *argv[1:]]
    train.main(argv, verb="align")
