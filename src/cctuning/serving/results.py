"""The results on a model card: what `cctuning evaluate` measured, with how many items and what error, and of whom.

Figures are copied from results.json and none is made here. Whether they are this model's own is not taken on trust:
results carry a fingerprint of every weight they were measured on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cctuning.evaluation.results_table import METRIC_NAMES
from cctuning.evaluation.saved_results import ScoredRun, read_run
from cctuning.markdown import table

MODES = {"student": "", "bypass": ", transform bypassed", "parallel": ", the prompt in the reference language at hand"}


def read_results(directories: Sequence[str]) -> list[ScoredRun]:
    """Finished results of `cctuning evaluate`.

    Raises:
        UserError: a directory without, with unfinished ones, or with broken ones.
    """
    return [read_run(Path(directory).name, Path(directory)) for directory in directories]


def results_section(runs: Sequence[ScoredRun], fingerprints: Collection[str]) -> str:
    """The figures as Markdown, a table a run.

    Args:
        runs: what `read_results` gave; may be empty.
        fingerprints: of this model: as trained, and as exported.
    """
    if not runs:
        return "Nothing was measured for this card."
    parts = ["% ± standard error over items (n of them). Chance is what guessing gives."]
    for run in runs:
        record = run.record
        own = record["model"].get("fingerprint") in fingerprints
        name = Path(str(record["model"].get("name", run.path.name))).name
        whose = "This model" if own else f"Another model, for comparison: {name}"
        lines = [f"### {whose}{MODES.get(record['settings'].get('mode', 'student'), '')}", ""]
        rows = [_cells(task.about) for task in sorted(run.tasks.values(), key=lambda t: (t.benchmark, t.language))]
        lines.append(table(["benchmark", "language", "metric", "n", "%", "chance"], rows, "lllrrr"))
        told = {**record["settings"], **{f"{key} version": value for key, value in record.get("versions", {}).items()}}
        lines += ["", ", ".join(f"{key} {value}" for key, value in told.items() if value is not None) + "."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cells(task: dict[str, Any]) -> list[Any]:
    figure = task["metrics"][task["metric"]]
    error = "" if figure["stderr"] is None else f" ± {100 * figure['stderr']:.1f}"
    chance = "" if task.get("chance") is None else f"{100 * task['chance']:.1f}"
    metric = METRIC_NAMES.get(task["metric"], task["metric"])
    return [task["benchmark"], task["language"], metric, task["items"], f"{100 * figure['value']:.1f}{error}", chance]
