"""Read and check run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.evaluation.saved_results import parse_named
from cctuning.model import serialization
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE
from cctuning.serving.trained_run import read_trained_run
from cctuning.training.directory import METRICS_FILE, check_record

LORA_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, from the headers of the weight files."""

    connection: int
    transform: int  # part of the connection
    lora: int
    base: int  # full fine-tuning


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    path: Path
    record: dict[str, Any]  # run.json
    options: dict[str, Any]  # config.yaml
    metrics: list[dict[str, Any]]  # log steps
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
        found = [line for line in self.metrics if _is_number(line.get(key)) and "train_runtime" not in line]
        return [float(line["step"]) for line in found], [float(line[key]) for line in found]

    def last(self, key: str) -> float | None:
        """The last value of a metric, including the summary."""
        return next((float(line[key]) for line in reversed(self.metrics) if _is_number(line.get(key))), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read runs from `NAME=DIR` or `DIR`."""
    return [_read_run(name, Path(path)) for name, path in parse_named(arguments)]


def _read_run(name: str, path: Path) -> Run:
    if not (path / RUN_FILE).is_file():
        lacking = f"no {RUN_FILE} there" if path.is_dir() else "no such directory"
        raise UserError(f"{path}: {lacking}; expected a run that `cctuning train` wrote.")
    run = read_trained_run(str(path))
    check_record(path / RUN_FILE, run.record, {"steps": int, "seconds": (int, float)}, "report it")
    return Run(name, path, run.record, run.options, _metrics(path), run.connection, _sizes(path / MODEL_FOLDER))


def _metrics(path: Path) -> list[dict[str, Any]]:
    file = path / METRICS_FILE
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): the run directory is damaged; copy it again.") from error


def _sizes(model: Path) -> Sizes:
    def numbers(files: list[Path]) -> dict[str, int]:
        """Number of parameters by name."""
        found: dict[str, int] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as weights:
                    found |= {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: damaged safetensors file ({error}); copy the run again.") from error
        return found

    ours = sorted(model.glob(f"{serialization.WEIGHTS_STEM}*.safetensors"))
    lora = sorted(model.glob(LORA_WEIGHTS))
    base = [file for file in model.glob("*.safetensors") if file not in (*ours, *lora)]
    connection = numbers(ours)
    transform = sum(size for name, size in connection.items() if ".transform." in name)
    return Sizes(sum(connection.values()), transform, sum(numbers(lora).values()), sum(numbers(base).values()))
