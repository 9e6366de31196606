"""Save and load a connection (`connection_config.json`, `connection_model.safetensors`); read safetensors files.

JSON and safetensors only; nothing is pickled. Files are written under another name and renamed, so a directory never
holds half of one. A fingerprint of the base prevents loading a connection on a model it was not trained with.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model.sites import unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel

CONFIG_FILE = "connection_config.json"
WEIGHTS_STEM = "connection_model"  # a sharded run may write several files: connection_model-0000i-of-0000n
WEIGHTS_FILE = f"{WEIGHTS_STEM}.safetensors"
FORMAT = 1
LORA_CONFIG = "adapter_config.json"  # of PEFT
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")  # where PEFT saves resized
# What libraries raise for files that are missing, damaged, of another model, or in need of a package not installed.
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError, SafetensorError)


# -- the base --------------------------------------------------------------------------------------------------------


def check_adapter(model: PreTrainedModel) -> None:
    """Raise `UserError` for a PEFT adapter that makes rows longer than their mask (virtual tokens)."""
    kind = getattr(getattr(model, "active_peft_config", None), "peft_type", None)
    if kind in (PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.MULTITASK_PROMPT_TUNING):
        raise UserError(f"{kind.value}: its virtual tokens move every prompt's end; use a LoRA or prefix tuning.")


def base_is_trained(connected: ConnectedModel) -> bool:
    """Whether any weight that is neither the connection's nor a LoRA's is trainable."""
    ours = {id(p) for c in connected.connections.values() for p in c.parameters()}
    named = connected.model.named_parameters()
    return any(p.requires_grad and id(p) not in ours and "lora_" not in name for name, p in named)


def describe_base(model: PreTrainedModel, embedding: Tensor | None = None) -> dict[str, Any]:
    """Family, sizes and name of a base model, and what its weights are recognised by.

    `fingerprint` is a hash over 4,096 values of the input embedding rounded to bf16, so it is the same in float32 and
    bfloat16; `sample` are 64 values, for float16, which rounds otherwise. Where the base is trained the embedding
    changes too, so both are of the trained base.

    Args:
        embedding: input embedding of the model, gathered, where the model itself holds a shard of it.
    """
    base: Any = unwrap(model)
    text = base.config.get_text_config()
    flat = (base.get_input_embeddings().weight if embedding is None else embedding).detach().flatten()
    hashed = flat[:: max(1, flat.numel() // 4096)][:4096].float().cpu().bfloat16().view(torch.int16)
    sample = flat[:: max(1, flat.numel() // 64)][:64].float().tolist()
    return {
        "model_type": base.config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
        "name_or_path": base.config.name_or_path,
        "fingerprint": hashlib.sha256(hashed.numpy().tobytes()).hexdigest()[:16],
        "sample": [float(f"{value:.5g}") for value in sample],
    }


def check_base(model: PreTrainedModel, record: dict[str, Any], directory: Path) -> None:
    """Raise `UserError` unless `model` is the base of the connection with config `record` in `directory`."""
    found, expected = describe_base(model), record["base"]
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        if found[key] != expected[key]:
            raise UserError(
                f"{directory}: made for another model: {key} {expected[key]!r}, this one has {found[key]!r}; "
                f"load it on {expected['name_or_path'] or 'the base it was trained with'}."
            )
    half = unwrap(model).get_input_embeddings().weight.dtype == torch.float16  # differs by its rounding
    pairs = [*zip(found["sample"], expected.get("sample", []), strict=False)]
    close = half and pairs and all(abs(a - b) <= 2e-3 * abs(b) + 1e-7 for a, b in pairs)
    if found["fingerprint"] != expected["fingerprint"] and not close:
        which = "its own fine-tuned base" if expected["trained"] else expected["name_or_path"] or "its base"
        raise UserError(
            f"{directory}: made for another model of the same shape (embedding fingerprint {found['fingerprint']}, "
            f"expected {expected['fingerprint']}); load it on {which}."
        )


# -- weights ---------------------------------------------------------------------------------------------------------


def read_weights(directory: Path, stem: str = "model") -> dict[str, Tensor]:
    """The tensors of `STEM.safetensors`, or of the files that `STEM.safetensors.index.json` names.

    They are memory-mapped: one that is not used is not read.
    """
    path = index = directory / f"{stem}.safetensors.index.json"
    single = directory / f"{stem}.safetensors"
    if not index.is_file() and not single.is_file():
        raise UserError(
            f"{directory}: {single.name} is missing, so the directory is incomplete; train or copy it again."
        )
    found: dict[str, Tensor] = {}
    try:
        names = {single.name}
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for name in sorted(names):
            path = directory / name
            found |= load_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        kind = "index" if path == index else "safetensors file"
        raise UserError(f"{path}: not a complete {kind} ({error!r}); train or copy it again.") from error
    return found


def read_into(parameter: Tensor, value: Tensor, where: str) -> None:
    """Copy the whole `value` into `parameter`, of which this process may hold a shard."""
    if parameter.shape != value.shape:
        raise UserError(f"{where}: has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}.")
    with torch.no_grad():
        parameter.copy_(shard_like(parameter, value))


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value` (the same in every process), on the device of `parameter` and sharded like it."""
    if isinstance(parameter, DTensor):
        local = value.to(parameter.to_local().device)
        return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)


# -- the files -------------------------------------------------------------------------------------------------------


def save_state(
    connected: ConnectedModel,
    directory: Path,
    state: dict[str, Tensor],
    base_trained: bool,
    embedding: Tensor | None = None,
) -> None:
    """Write config and weights; `state` and `embedding` are gathered copies where the model itself is sharded."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{WEIGHTS_FILE}.partial"
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, partial)
    os.replace(partial, directory / WEIGHTS_FILE)
    record = {
        "format": FORMAT,
        "connection": connected.config.to_dict(),
        "reference_language": connected.reference_language,
        "base": describe_base(connected.model, embedding) | {"trained": base_trained},
    }
    write_atomically(directory / CONFIG_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_config(directory: Path) -> dict[str, Any]:
    """The saved record, checked."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{directory}: no {CONFIG_FILE} in it; expected a directory written by save_pretrained.")
    record = read_json(path, "not the config of a connection")
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: format {record.get('format')}, this version reads {FORMAT}; upgrade cc-tuning.")
    if not {"base", "connection"} <= record.keys():
        raise UserError(f"{path}: not the config of a connection; train or copy it again.")
    return record


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON object; `otherwise` says what a file that holds none is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"expected an object, got {type(found).__name__}")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): {otherwise}; copy it again, or use another.") from error


def load_lora(model: PreTrainedModel, directory: Path) -> Any:
    """`model` with the LoRA in `directory`, as PEFT loads it; a vocabulary that training resized is resized first."""
    try:
        rows = _saved_vocabulary(directory)
        if rows is not None and rows != model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return PeftModel.from_pretrained(model, str(directory))
    except LOADING_ERRORS as error:
        raise UserError(
            f"{directory}: its LoRA cannot be loaded on {model.config.name_or_path!r}: {first_line(error)} The files "
            f"are incomplete or made for another model: copy them again, or correct the base in {LORA_CONFIG}."
        ) from error


def _saved_vocabulary(directory: Path) -> int | None:
    """Rows of the embedding that a model was trained with; None where the files do not tell: its base's."""
    if (directory / CONFIG_FILE).is_file():
        return read_config(directory)["base"].get("vocab_size")
    with safe_open(directory / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # no mapping, and not iterable
            if key.endswith(tuple(f".{end}.weight" for end in EMBEDDINGS)):
                return int(file.get_slice(key).get_shape()[0])
    return None


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
