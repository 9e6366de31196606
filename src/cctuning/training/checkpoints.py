"""Find the newest complete checkpoint of a run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.shards import ShardReader
from cctuning.training import sharded_checkpoints as sharded

INDEX = ".safetensors.index.json"


def is_complete(checkpoint: Path) -> bool:
    """Whether the trainer's state is there, which transformers writes last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def fault(checkpoint: Path, weights_only: bool = False) -> str | None:
    """The first file that is missing or damaged; None if the checkpoint can be resumed from.

    Args:
        weights_only: it was saved without the optimizer (`save_only_model`).
    """
    if not is_complete(checkpoint):
        return TRAINER_STATE_NAME
    return next(_damaged(checkpoint), None) or next(_missing(checkpoint, weights_only), None)


def _damaged(checkpoint: Path) -> Iterator[str]:
    for file in sorted(checkpoint.iterdir()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError):
                yield file.name
        elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            yield file.name
        elif file.name.endswith(INDEX):
            try:
                ShardReader(checkpoint, file.name.removesuffix(INDEX))
            except UserError:
                yield file.name
        elif file.suffix == ".json":
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                yield file.name


def _missing(checkpoint: Path, weights_only: bool) -> Iterator[str]:
    names = {file.name for file in checkpoint.iterdir()}

    def there(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if "latest" in names:  # DeepSpeed's, in folders of its own
        return
    if not there("model", "adapter_model"):
        yield "model.safetensors"
    if serialization.CONFIG_FILE in names and not there(serialization.WEIGHTS_STEM):
        yield serialization.WEIGHTS_FILE
    if weights_only:
        return
    if OPTIMIZER_NAME not in names and not sharded.has_optimizer(checkpoint):
        yield OPTIMIZER_NAME
    if SCHEDULER_NAME not in names:
        yield SCHEDULER_NAME
    if not there("rng_state"):
        yield "rng_state.pth"


def last_whole(directory: Path, weights_only: bool = False) -> tuple[str | None, list[str]]:
    """The newest checkpoint that a run can be resumed from, and notes on those after it."""
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()]
    notes: list[str] = []
    for path in sorted(found, key=lambda path: -int(path.name[11:])):
        wrong = fault(path, weights_only)
        if wrong is None:
            return str(path), notes
        notes.append(f"{path.name} is skipped: {wrong} is missing or damaged.")
    return None, notes
