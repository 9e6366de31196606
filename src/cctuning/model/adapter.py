"""The connection on disk: `connection_config.json` and `connection_model.safetensors`, beside or apart from the base.

JSON and safetensors only; nothing is pickled. Files are written under another name and renamed, so that a directory
never holds half of one. The base is recognised by a fingerprint, so that a connection cannot be laid on a model it
was not made for without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.model.sites import unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel

CONFIG_FILE = "connection_config.json"
WEIGHTS_FILE = "connection_model.safetensors"
FORMAT = 1


def describe_base(model: PreTrainedModel) -> dict[str, Any]:
    """What tells one base from another: family, sizes, name. (Weights change in training; see `fingerprint`.)"""
    base = unwrap(model)
    text = base.config.get_text_config()
    return {
        "model_type": base.config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
        "name_or_path": base.config.name_or_path,
    }


def fingerprint(model: PreTrainedModel) -> str:
    """Hash over a sample of the input embedding, which survives a change of dtype (values are rounded to bf16).

    Where the base is trained its embedding changes too, and the fingerprint with it; it is then taken from the
    trained base, so it still tells whether the right copy is at hand.
    """
    base: Any = unwrap(model)
    weight = base.get_input_embeddings().weight.detach()
    sample = weight.flatten()[:: max(1, weight.numel() // 4096)][:4096].float().cpu().bfloat16()
    return hashlib.sha256(sample.view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old content or all of the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def save(connected: ConnectedModel, directory: Path, base_trained: bool | None) -> None:
    """See `ConnectedModel.save_pretrained`."""
    if base_trained is None:
        base_trained = base_is_trained(connected)
    save_state(connected, directory, connected.connection_state(), base_trained)


def base_is_trained(connected: ConnectedModel) -> bool:
    """Whether any weight that is neither the connection's nor a LoRA's is trainable."""
    ours = {id(p) for c in connected.connections.values() for p in c.parameters()}
    return any(
        p.requires_grad and id(p) not in ours and "lora_" not in name for name, p in connected.model.named_parameters()
    )


def save_state(connected: ConnectedModel, directory: Path, state: dict[str, torch.Tensor], base_trained: bool) -> None:
    """Write config and weights, the weights from `state` (a gathered copy, where the model itself is sharded)."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{WEIGHTS_FILE}.partial"
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, partial)
    os.replace(partial, directory / WEIGHTS_FILE)
    record = {
        "format": FORMAT,
        "connection": connected.config.to_dict(),
        "reference_language": connected.reference_language,
        "base": {
            **describe_base(connected.model),
            "trained": base_trained,
            "fingerprint": fingerprint(connected.model),
        },
    }
    write_atomically(directory / CONFIG_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_config(directory: Path) -> dict[str, Any]:
    """The saved record, checked.

    Raises:
        UserError: no connection there, or one that cannot be read.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{directory}: no {CONFIG_FILE} there; expected a directory that save_pretrained wrote.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{path}: format {record['format']}, this version reads {FORMAT}; upgrade cc-tuning.")
        record["base"], record["connection"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a connection's config ({error!r}); train or copy it again.") from error
    return record


def load(cls: type[ConnectedModel], model: PreTrainedModel, directory: Path) -> ConnectedModel:
    """See `ConnectedModel.from_pretrained`."""
    record = read_config(directory)
    found, expected = describe_base(model), record["base"]
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        if found[key] != expected[key]:
            raise UserError(
                f"{directory}: made for another model: {key} {expected[key]!r}, this one has {found[key]!r}; "
                f"load it on {expected['name_or_path'] or 'the base it was trained with'}."
            )
    if fingerprint(model) != expected["fingerprint"]:
        which = "its own fine-tuned base" if expected["trained"] else expected["name_or_path"] or "its base"
        raise UserError(
            f"{directory}: made for another model of the same shape (embedding fingerprint {fingerprint(model)}, "
            f"expected {expected['fingerprint']}); load it on {which}."
        )
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise UserError(f"{directory}: {WEIGHTS_FILE} is missing: a half-written directory; train or copy it again.")
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights}: not a complete safetensors file ({error}); train or copy it again.") from error
    config = ConnectionConfig.from_dict(record["connection"], str(directory / CONFIG_FILE))
    connected = cls.attach(model, config)
    try:
        connected.load_connection_state(state, str(weights))
    except UserError:
        connected.unload()
        raise
    connected.reference_language = record["reference_language"]
    connected.base_trained = expected["trained"]
    return connected
