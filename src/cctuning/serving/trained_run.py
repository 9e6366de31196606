"""Read and check the records of a run, for an export before its weights are loaded, and for the report.

A missing or outdated record would otherwise give an export that looks complete: without the connection where its file
was not copied, or with a model card that does not name the data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.loading import LOADING_ERRORS, LORA_CONFIG, RUN_FILE, base_of, resolve
from cctuning.training.directory import check_record, is_complete, read_options

# Keys of run.json (dotted) that an export or the report needs, and their types.
EXPECTED: dict[str, Any] = {
    "versions": dict,
    "model": str,
    "reference_language": str,
    "chat": bool,
    "notes": list,
    "skipped_in_tokenisation": list,
    "data.skipped": list,
    "data.sources": list,
    "data.languages": dict,
    "data.rows": int,
    "data.with_response": int,
    "data.without_response": int,
}


@dataclass(frozen=True)
class TrainedRun:
    """A run, or a model directory of one."""

    path: str  # as the user gave it
    weights: Path  # the directory with the weights
    record: dict[str, Any]  # run.json; empty where the model directory is not inside its run
    options: dict[str, Any]  # config.yaml, likewise: the options that differ from the defaults
    connection: ConnectionConfig
    reference_language: str

    @property
    def languages(self) -> list[str]:
        """Languages of the rows except the reference language, most rows first; empty where not known."""
        counts: Counter[str] = Counter()
        for part in (self.record.get("data"), self.record.get("parallel")):
            counts.update(part["languages"] if part else {})
        return sorted((code for code in counts if code != self.reference_language), key=lambda code: -counts[code])


def read_trained_run(path: str) -> TrainedRun:
    """Read the records of a run, of one of its checkpoints, or of a model directory that CC-Tuning wrote."""
    where, record = resolve(path)
    weights = Path(where)
    if weights.name.startswith("checkpoint-") and weights.is_dir() and not is_complete(weights):
        raise UserError(f"{path}: incomplete checkpoint (no complete trainer_state.json); use another checkpoint.")
    saved = serialization.read_config(weights) if (weights / serialization.CONFIG_FILE).is_file() else None
    if not record and saved is None:
        raise UserError(
            f"{path}: no {RUN_FILE} beside it and no {serialization.CONFIG_FILE} in it, so it is a plain checkpoint "
            "or LoRA already, which any server loads (PEFT's merge_and_unload() merges a LoRA)."
        )
    options: dict[str, Any] = {}
    if record:
        run = weights.parent
        check_record(run / RUN_FILE, record, EXPECTED, "export or report it")
        options = read_options(run)
        # The first version did not record `gated`, its default.
        if saved is None and options.get("connection", "gated") not in ("align", "none"):
            raise UserError(
                f"{weights}: {serialization.CONFIG_FILE} is missing, but the run trained a connection (config.yaml); "
                "the directory is incomplete. Copy it again, or use another checkpoint."
            )
    if saved is None:
        names = {option.name for option in fields(ConnectionConfig)}
        given = {"connection": "none", **{name: value for name, value in options.items() if name in names}}
        file, reference = weights.parent / "config.yaml", record["reference_language"]
    else:
        given, file, reference = saved["connection"], weights / serialization.CONFIG_FILE, saved["reference_language"]
    return TrainedRun(path, weights, record, options, ConnectionConfig.from_dict(given, str(file)), str(reference))


def check_not_quantized(run: TrainedRun, trust_remote_code: bool = False) -> None:
    """Raise `UserError` where the files of the base are quantized, according to their config.

    The transform is multiplied with the base's weights, which needs them in floating point. The config is read before
    the weights because reading quantized ones may need a package that is not installed.
    """
    _, source = base_of(run.weights, run.record)
    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS:
        return  # loading raises a better error
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        known = isinstance(quantization, dict)
        method = quantization.get("quant_method") if known else getattr(quantization, "quant_method", None)
        raise UserError(
            f"{source}: the weights are quantized ({getattr(method, 'value', method) or 'unknown method'}, see "
            "quantization_config in its config.json); an export needs them in floating point. Set "
            f"base_model_name_or_path in {run.weights / LORA_CONFIG} to the unquantized model, or train on that model."
        )
