"""Find the newest complete checkpoint of a run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning.errors import UserError
from cctuning.model import serialization

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
    files = sorted(checkpoint.iterdir())
    damaged = next((file.name for file in files if not _is_readable(file)), None)
    if damaged or (checkpoint / "latest").exists():  # DeepSpeed's, in folders of its own
        return damaged
    # File -> beginnings of names, one of which is enough.
    needed: dict[str, tuple[str, ...]] = {"model.safetensors": ("model", "adapter_model")}
    if (checkpoint / serialization.CONFIG_FILE).exists():
        needed[serialization.WEIGHTS_FILE] = (serialization.WEIGHTS_STEM,)
    if not weights_only:
        needed |= {OPTIMIZER_NAME: (OPTIMIZER_NAME,), SCHEDULER_NAME: (SCHEDULER_NAME,)}
        needed |= {"rng_state.pth": ("rng_state",)}
    missing = (name for name, begin in needed.items() if not any(file.name.startswith(begin) for file in files))
    return next(missing, None)


def _is_readable(file: Path) -> bool:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return True
        if file.name.endswith(INDEX):
            serialization.read_weights(file.parent, file.name.removesuffix(INDEX))
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        return file.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(file)
    except (OSError, ValueError, SafetensorError, UserError):
        return False


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
