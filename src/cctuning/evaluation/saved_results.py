"""Directories of results: write and continue them, and read them.

A directory holds:

- `results.json`: settings, versions, the hash of the model's weights, and the figures of each finished task
- `results.md`: the same as a table
- `samples/TASK.jsonl`: one line per item with prompt, target, answer and metrics
- `journal.jsonl`: answers of the task at work; removed at the end
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cctuning.errors import UserError
from cctuning.evaluation.result_tables import results_page
from cctuning.files import write_atomically, write_json
from cctuning.model.loading import Loaded

FORMAT = 1  # of results.json
RESULTS_FILE, SAMPLES_FOLDER, JOURNAL_FILE, TABLE_FILE = "results.json", "samples", "journal.jsonl", "results.md"
PACKAGES = ("cc-tuning", "lm_eval", "torch", "transformers", "peft", "datasets")
_AGAIN = "score the model again with `cctuning evaluate` into a new directory"


@dataclass(frozen=True)
class ScoredRun:
    """The results of one model."""

    system: str
    path: Path
    record: dict[str, Any]  # the content of results.json
    items: dict[str, pd.DataFrame]  # of each task, by item: `document`, `prompt` (hashes), `value` of the main metric

    @property
    def mode(self) -> str | None:
        return self.record["settings"].get("mode")

    def about(self, task: str) -> dict[str, Any]:
        return self.record["tasks"][task]


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn an error of writing to `directory`, such as a full disk, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or directory}: cannot be written ({error.strerror or error}); free some space and give "
            "the same command again: what was scored is kept."
        ) from error


def claim(directory: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results of an earlier, unfinished run, None for a new directory."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output {directory}: a file; name a directory.")
    file = directory / RESULTS_FILE
    if not file.is_file():
        ours = (f".{RESULTS_FILE}.partial", SAMPLES_FOLDER)  # left by a run that could not write results.json
        if directory.is_dir() and any(one.name not in ours for one in directory.iterdir()):
            raise UserError(f"--output {directory}: not empty, and no {RESULTS_FILE} in it; name another directory.")
        return None
    record = _read_record(file)
    now, before = json.loads(json.dumps(settings)), record["settings"]
    other = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if other:
        told = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in other)
        raise UserError(f"--output {directory}: holds results of other settings: {told}; name another directory.")
    return record


def new_record(path: str, loaded: Loaded, weights: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a model of which no task is scored yet; `weights` is their hash."""
    return {
        "format": FORMAT,
        "status": "stopped",
        "model": {
            "name": path,
            "fingerprint": weights,
            "dtype": str(loaded.model.dtype),
            "training_seed": loaded.run.get("seed"),
        },
        "settings": settings,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(loaded.model.device),
        "tasks": {},
    }


def write_results(directory: Path, record: dict[str, Any]) -> None:
    """Write `results.json` and the table of it."""
    write_json(directory / RESULTS_FILE, record)
    write_atomically(directory / TABLE_FILE, results_page(record))


def sample_line(sample: dict[str, Any]) -> dict[str, Any]:
    """One item as a line of `samples/TASK.jsonl`."""
    texts, found = sample["arguments"], sample["filtered_resps"]
    response: Any
    if isinstance(texts[0][1], dict):  # settings of generation; a filter may extract a number or strip white space
        response = {"said": sample["resps"][0][0], "scored": found[0]}
    else:
        response = [{"choice": text[1], "loglikelihood": one[0]} for text, one in zip(texts, found, strict=True)]
    metrics = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample.get(name), (int, float))}
    return {
        "id": sample["doc_id"],
        "hash": sample["doc_hash"],
        "prompt": texts[0][0],
        "prompt_hash": hashlib.sha256(json.dumps(texts, ensure_ascii=False, default=str).encode()).hexdigest(),
        "target": sample["target"],
        "response": response,
        "metrics": metrics,
    }


def answer_counts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of empty answers, distinct answers and distinct targets; empty for a task without generated answers."""
    written = [one for one in samples if isinstance(one["response"], dict)]
    if not written:
        return {}
    answers = [str(one["response"]["said"]).strip() for one in written]
    targets = {json.dumps(one["target"], ensure_ascii=False) for one in written}
    return {"answers": {"empty": answers.count(""), "distinct": len({*answers}), "targets": len(targets)}}


def task_warnings(name: str, task: dict[str, Any]) -> list[str]:
    """Warnings about a task: prompts that were cut, and answers that are all empty or the same, which points to wrong
    prompts or settings."""
    notes = []
    if task.get("cut"):
        notes.append(
            f"{name}: {task['cut']} of {task['items']} prompts do not fit into the model's context with the answer; "
            "their beginning was cut."
        )
    found = task.get("answers")
    if found and found["distinct"] < 2 and (found["empty"] or found["targets"] > 1):
        what = "empty" if found["empty"] else "the same"
        notes.append(
            f"{name}: all {task['items']} answers are {what}, so the score does not measure the model: read "
            f"samples/{name}.jsonl and check that prompts are rendered as in training (--chat)."
        )
    return notes


def parse_named(arguments: Sequence[str], seeds: bool = False) -> list[tuple[str, str]]:
    """Split `NAME=PATH` arguments; a plain path is named after its last part.

    Args:
        seeds: several paths with the same given name are training seeds of one system.
    """
    found: list[tuple[str, str]] = []
    unnamed = set()
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or Path(argument).is_dir():  # a directory may have "=" in its name
            name, path = Path(argument).resolve().name, argument
            unnamed.add(name)
        if not name or not path:
            raise UserError(f"{argument!r}: expected DIR or NAME=DIR.")
        other = next((path for known, path in found if known == name), None)
        if other is not None and (name in unnamed or not seeds):
            or_seeds = f", or {name}={other} {name}={path} if they are seeds of one system" if seeds else ""
            raise UserError(f"{other}, {path}: both would be called {name!r}; use {name}-2={path}{or_seeds}.")
        found.append((name, path))
    return found


def parse_runs(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """As `parse_named`, for directories of results."""
    return [(name, Path(path)) for name, path in parse_named(arguments, seeds=True)]


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {_AGAIN}.") from error
    parts = ("model", "settings", "tasks")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in parts):
        raise UserError(f"{file}: not results of `cctuning evaluate` ({', '.join(parts)}); name another directory.")
    if record.get("format") != FORMAT:
        raise UserError(f"{file}: format {record.get('format')}, and this version reads {FORMAT}; {_AGAIN}.")
    return record


def read_run(system: str, path: Path) -> ScoredRun:
    """Read a directory of finished results."""
    file = path / RESULTS_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a directory that `cctuning evaluate` wrote.")
    record = _read_record(file)
    if record.get("status") != "finished":
        lacking = [name for name in record.get("planned") or [] if name not in record["tasks"]]
        told = f", without {', '.join(lacking)}" if lacking else ""
        raise UserError(f"{file}: not finished{told}; give the same `cctuning evaluate` command again to continue.")
    return ScoredRun(
        system, path, record, {name: _read_items(path, name, one) for name, one in record["tasks"].items()}
    )


def _read_items(path: Path, name: str, about: dict[str, Any]) -> pd.DataFrame:
    file = path / SAMPLES_FOLDER / f"{name}.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file, but {RESULTS_FILE} has the task; {_AGAIN}.")
    items: dict[int, tuple[str, str, float]] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
                value = sample["metrics"][about["metric"]]
                if not 0 <= value <= 1:  # NaN fails too
                    raise ValueError(f"{about['metric']}: {value} is not between 0 and 1")
                items[int(sample["id"])] = sample["hash"], sample["prompt_hash"], float(value)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}, line {number}: not a sample ({error!r}); {_AGAIN}.") from error
    if not items or len(items) != about["items"]:
        raise UserError(f"{file}: {len(items)} items, and results.json counts {about['items']}; {_AGAIN}.")
    return pd.DataFrame.from_dict(items, orient="index", columns=["document", "prompt", "value"])


def model_hash(loaded: Loaded, mode: str = "student") -> str:
    """A hash of all weights (with those of the connection), the tokenizer's vocabulary and its chat template."""
    digest = hashlib.blake2b(digest_size=16)
    module = loaded.model if loaded.connected is None else loaded.connected
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().contiguous().cpu()
        digest.update(name.encode() + str(plain.dtype).encode() + str(tuple(plain.shape)).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    digest.update(json.dumps(loaded.tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(str(loaded.tokenizer.chat_template).encode() + mode.encode())
    return digest.hexdigest()
