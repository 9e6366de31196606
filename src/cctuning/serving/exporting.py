"""A run, or a checkpoint of one, written out as what any server loads: everything it needs, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from cctuning.errors import UserError
from cctuning.model.export import export_lora
from cctuning.model.loading import Loaded, load, torch_dtype
from cctuning.model.sites import unwrap
from cctuning.serving.answering import encoder_of
from cctuning.serving.stops import stop_tokens


def export(
    path: str, format: str, directory: Path, *, dtype: str = "auto", trust_remote_code: bool = False
) -> str | None:
    """Write what `path` (a run or a checkpoint of one) becomes.

    Args:
        path: as in `loading.load`.
        format: `fold` (a plain checkpoint) or `lora` (a PEFT LoRA for the untouched base).
        directory: to write; must not exist.
        dtype: of a folded checkpoint; `auto` keeps that of the trained weights.

    Returns:
        For `lora`, the base model that it belongs to.

    Raises:
        UserError: `directory` exists, or the model cannot be exported so.
    """
    if directory.exists():
        raise UserError(f"--output {directory}: exists already; name a directory that does not.")
    kind = torch_dtype(dtype)
    if format == "lora" and kind is not None:
        raise UserError("--dtype: of a folded checkpoint; a LoRA keeps the dtype it was trained in.")
    loaded = load(path, trust_remote_code=trust_remote_code)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if format == "lora":
            _write_lora(loaded, path, partial)
        else:
            stops = stop_tokens(encoder_of(loaded), unwrap(loaded.model))
            model: Any = _plain(loaded)
            if kind is not None:
                model = model.to(kind)  # after folding, which is done in fp32
            if stops and model.generation_config is not None:  # servers stop where this file says, and nowhere else
                model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops
            model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return loaded.base if format == "lora" else None


def _write_lora(loaded: Loaded, path: str, directory: Path) -> None:
    if loaded.connected is not None:
        export_lora(loaded.connected, directory, base_name=loaded.base)
    elif isinstance(loaded.model, PeftModel):
        loaded.model.save_pretrained(str(directory))
    else:
        raise UserError(f"{path}: neither connection nor LoRA in it; nothing to export as one. Use --format fold.")


def _plain(loaded: Loaded) -> PreTrainedModel:
    if loaded.connected is not None:
        return loaded.connected.merge_and_unload()
    if isinstance(loaded.model, PeftModel):
        return loaded.model.merge_and_unload()
    return loaded.model
