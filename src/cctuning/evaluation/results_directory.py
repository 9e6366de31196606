"""The directory of a model's results: check that it can be written to or continued, and write it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.evaluation.models import writing
from cctuning.evaluation.results_table import markdown
from cctuning.evaluation.saved_results import FORMAT
from cctuning.files import write_atomically
from cctuning.model.loading import Loaded

RESULTS_FILE, SAMPLES_FOLDER, JOURNAL_FILE, TABLE_FILE = "results.json", "samples", "journal.jsonl", "results.md"
PACKAGES = ("cc-tuning", "lm_eval", "torch", "transformers", "peft", "datasets")


def claim(directory: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results of an earlier, unfinished run, None for a new directory.

    Raises:
        UserError: the directory holds something else, or results of other settings.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output {directory}: a file; name a directory.")
    file = directory / RESULTS_FILE
    if not file.is_file():
        ours = (f".{RESULTS_FILE}.partial", SAMPLES_FOLDER)  # left by a run that could not write results.json
        if directory.is_dir() and any(one.name not in ours for one in directory.iterdir()):
            raise UserError(f"--output {directory}: not empty, and no {RESULTS_FILE} in it; name another directory.")
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        before, form = record["settings"], record["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); name another directory, or remove this one.") from error
    if form != FORMAT:
        raise UserError(f"{file}: format {form}, and this version writes {FORMAT}; name another directory.")
    now = json.loads(json.dumps(settings))
    other = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if other:
        told = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in other)
        raise UserError(f"--output {directory}: holds results of other settings: {told}; name another directory.")
    return record


def new_record(path: str, loaded: Loaded, mark: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a model of which no task is scored yet; `mark` is the hash of its weights."""
    return {
        "format": FORMAT,
        "status": "stopped",
        "model": {
            "name": path,
            "fingerprint": mark,
            "dtype": str(loaded.model.dtype),
            "training_seed": loaded.run.get("seed"),
            "group": None,
        },
        "settings": settings,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(loaded.model.device),
        "tasks": {},
    }


def write_results(directory: Path, record: dict[str, Any]) -> None:
    """Write `results.json` and the table of it."""
    for name, text in (
        (RESULTS_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        (TABLE_FILE, markdown(record)),
    ):
        with writing(directory / name):
            write_atomically(directory / name, text)
