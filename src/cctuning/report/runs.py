"""Read and check run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.evaluation.saved_results import parse_runs
from cctuning.model import serialization
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE, read_record, resolve
from cctuning.training.directory import METRICS_FILE, check_record, read_options

LORA_WEIGHTS = "adapter_model.safetensors"
# Dotted key of run.json to its type: what the report needs.
EXPECTED: dict[str, Any] = {
    "versions": dict,
    "model": str,
    "reference_language": str,
    "steps": int,
    "seconds": (int, float),
    "data.sources": list,
    "data.languages": dict,
    "data.rows": int,
    "data.with_response": int,
    "data.skipped": list,
    "skipped_in_tokenisation": list,
    "notes": list,
}


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, from the headers of the weight files."""

    connection: int
    transform: int  # part of the connection
    lora: int
    base: int  # full fine-tuning


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        record: content of run.json. options: content of config.yaml. metrics: log steps.
    """

    name: str
    path: Path
    record: dict[str, Any]
    options: dict[str, Any]
    metrics: list[dict[str, Any]]
    connection: ConnectionConfig
    sizes: Sizes

    @property
    def connected(self) -> bool:
        return not self.connection.plain

    @property
    def base(self) -> str:
        return str(self.record["model"])

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a logged metric, without the summary at the end of training."""
        found = [
            (line["step"], line[key]) for line in self.metrics if _is_number(line.get(key)) and not _summary(line)
        ]
        return [float(step) for step, _ in found], [float(value) for _, value in found]

    def last(self, key: str) -> float | None:
        """The last value of a metric, including the summary."""
        values = [line[key] for line in self.metrics if _is_number(line.get(key))]
        return float(values[-1]) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _summary(line: dict[str, Any]) -> bool:
    return "train_runtime" in line


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read runs from `NAME=DIR` or `DIR`.

    Raises:
        UserError: two runs with one name, or a directory that is not a finished run of this version.
    """
    named = parse_runs(arguments)
    for place, (name, path) in enumerate(named):
        for other, earlier in named[:place]:
            if other == name:
                raise UserError(
                    f"{earlier}, {path}: two runs are called {name!r}; use different names, as in {name}-2={path}."
                )
    return [read_run(name, path) for name, path in named]


def read_run(name: str, path: Path) -> Run:
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; expected a run that `cctuning train` wrote.")
    if not (path / RUN_FILE).is_file():
        raise UserError(f"{path}: no {RUN_FILE} there; expected a run that `cctuning train` wrote.")
    record = read_record(path)
    if record.get("status") == "stopped":
        raise UserError(
            f"{path}: the run stopped before its end ({record.get('error', 'no reason recorded')}); continue it with "
            "cctuning train --config … --resume_from_checkpoint true, then report it."
        )
    resolve(str(path))  # raises an error for an unfinished run
    check_record(path / RUN_FILE, record, EXPECTED, "report it")
    model = path / MODEL_FOLDER
    has_connection = (model / serialization.CONFIG_FILE).is_file()
    given = read_options(path)
    if has_connection:
        options = serialization.read_config(model)["connection"]
    else:
        names = {option.name for option in fields(ConnectionConfig)}
        options = {"connection": "none", **{name: value for name, value in given.items() if name in names}}
    connection = ConnectionConfig.from_dict(options, str(model / serialization.CONFIG_FILE))
    return Run(name, path, record, given, _metrics(path), connection, _sizes(model))


def _metrics(path: Path) -> list[dict[str, Any]]:
    file = path / METRICS_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): the run directory is damaged; copy it again.") from error
    lines = []
    for place, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {place}: not JSON: truncated or damaged; copy the run again.") from error
        if not isinstance(entry, dict) or not _is_number(entry.get("step")):
            raise UserError(f"{file}, line {place}: no step: not a log of cctuning train; copy the run again.")
        lines.append(entry)
    return lines


def _sizes(model: Path) -> Sizes:
    def of(files: list[Path], within: str = "") -> int:
        total = 0
        for file in files:
            try:
                with safe_open(file, framework="pt") as weights:
                    names = [name for name in weights.keys() if within in name]  # noqa: SIM118 (not a mapping)
                    total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: damaged safetensors file ({error}); copy the run again.") from error
        return total

    ours = sorted(model.glob(f"{serialization.WEIGHTS_STEM}*.safetensors"))
    lora = [model / LORA_WEIGHTS] if (model / LORA_WEIGHTS).is_file() else []
    base = [file for file in sorted(model.glob("*.safetensors")) if file not in (*ours, *lora)]
    return Sizes(of(ours), of(ours, ".transform."), of(lora), of(base))
