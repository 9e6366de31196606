"""What is known of where a model came from: the records of its run, checked before any weight is loaded.

An export that leaves the connection out because a copy lost its file, or names no data because the record is another
version's, would look like a good one. So what a run must have is demanded here, and said where it is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.loading import LOADING_ERRORS, LORA_CONFIG, MODEL_FOLDER, RUN_FILE, resolve
from cctuning.training.checkpoints import is_complete
from cctuning.training.directory import check_record, read_options

# Key of run.json (dotted) to its type: what an export is made of.
EXPECTED: dict[str, Any] = {
    "versions": dict,
    "model": str,
    "reference_language": str,
    "chat": bool,
    "data.sources": list,
    "data.languages": dict,
    "data.rows": int,
    "data.with_response": int,
    "data.without_response": int,
}


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        path: as the user gave it. weights: the directory that holds them.
        record: run.json; empty where a model lies apart from its run.
        options: config.yaml, likewise: the options that differ from their defaults.
        connection: the connection's options.
        reference_language: of the connection.
    """

    path: str
    weights: Path
    record: dict[str, Any]
    options: dict[str, Any]
    connection: ConnectionConfig
    reference_language: str

    @property
    def languages(self) -> list[str]:
        """What it was trained in beside the reference language, the most rows first; empty where not known."""
        counts: Counter[str] = Counter()
        for part in (self.record.get("data"), self.record.get("parallel")):
            counts.update(part["languages"] if part else {})
        return sorted((code for code in counts if code != self.reference_language), key=lambda code: -counts[code])


def read_origin(path: str) -> Origin:
    """The records of `path`: a run, one of its checkpoints, or a model directory that CC-Tuning wrote.

    Raises:
        UserError: no such run, half of one, one of another version, or a model that none made.
    """
    where, record = resolve(path)
    weights = Path(where)
    if weights.name.startswith("checkpoint-") and weights.is_dir() and not is_complete(weights):
        raise UserError(f"{path}: half of a checkpoint (no whole trainer_state.json in it); name another.")
    saved = serialization.read_config(weights) if (weights / serialization.CONFIG_FILE).is_file() else None
    if not record and saved is None:
        raise UserError(
            f"{path}: neither a run's records ({RUN_FILE} beside {MODEL_FOLDER}/) nor a connection "
            f"({serialization.CONFIG_FILE}) there, so nothing of ours to export; name a run that cctuning train wrote."
        )
    options: dict[str, Any] = {}
    if record:
        run = weights.parent
        check_record(run / RUN_FILE, record, EXPECTED, "export")
        options = read_options(run)
        # Every run says which it trained; the first version's left out gated, which was the default.
        if saved is None and options.get("connection", "gated") not in ("align", "none"):
            raise UserError(
                f"{weights}: {serialization.CONFIG_FILE} is missing, and the run trained a connection "
                "(config.yaml): half written, or half copied; copy it again, or name another checkpoint."
            )
    if saved is None:
        kind = options.get("connection", "none")
        return Origin(path, weights, record, options, ConnectionConfig(kind), record["reference_language"])
    connection = ConnectionConfig.from_dict(saved["connection"], str(weights / serialization.CONFIG_FILE))
    return Origin(path, weights, record, options, connection, str(saved["reference_language"]))


def refuse_quantised(origin: Origin, trust_remote_code: bool = False) -> None:
    """Raise `UserError` where the config of the weights to be read says that they are quantised.

    A quantised weight cannot be multiplied by a transform, and a LoRA's factors are products with it; the config says
    so before the package that reads such weights is missed.
    """
    name = str(origin.weights)
    if (origin.weights / LORA_CONFIG).is_file():
        try:
            name = json.loads((origin.weights / LORA_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # loading will say what is wrong with it
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS:
        return
    told = getattr(config, "quantization_config", None)
    if told is not None:
        method = told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", None)
        kind = str(getattr(method, "value", method) or "by a method it does not name")
        raise UserError(
            f"{name}: its weights are quantised ({kind}, says quantization_config in its config), and an export needs "
            f"them in floating point; name the unquantised model as base_model_name_or_path in "
            f"{origin.weights / LORA_CONFIG}, or train on it."
        )
