"""Show results as tables: languages as rows, benchmarks as columns, then means and chance.

Length-normalised accuracy has a table of its own, since the first one is the one to compare with published figures.
"""

from __future__ import annotations

from typing import Any

from cctuning.evaluation.answer_language import HEADER, table_rows
from cctuning.languages import ENGLISH
from cctuning.markdown import table

NORMALISED = "acc_norm"
METRIC_NAMES = {
    "acc": "accuracy",
    NORMALISED: "acc. by length",
    "exact_match": "exact match",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
}
AT_ONCE = 5  # benchmarks side by side, as a terminal has room for


def _reference(record: dict[str, Any]) -> str:
    return record["model"].get("reference_language") or ENGLISH


def _table(record: dict[str, Any], tasks: list[dict[str, Any]]) -> str:
    """A Markdown table of the main metric of `tasks`."""
    cells = {(task["benchmark"], task["language"]): task for task in tasks}
    benchmarks = {task["benchmark"]: task for task in reversed(tasks)}
    names = [*dict.fromkeys(task["benchmark"] for task in tasks)]
    reference = _reference(record)
    languages = sorted({task["language"] for task in tasks}, key=lambda one: (one != reference, one))
    body = []
    for language in languages:
        figures = [_figure(cells.get((name, language))) for name in names]
        body.append([language, *figures])
    others = [one for one in languages if one != reference]
    groups = {"mean": languages, f"mean without {reference}": others}
    for label, group in groups.items():
        means = [_mean([cells[name, one] for one in group if (name, one) in cells]) for name in names]
        if any(mean != "-" for mean in means):
            body.append([label, *means])
    chances = [benchmarks[name]["chance"] for name in names]
    body.append(["chance", *("-" if chance is None else f"{100 * chance:.1f}" for chance in chances)])
    metrics = [benchmarks[name]["metric"] for name in names]
    columns = [f"{name} ({METRIC_NAMES.get(metric, metric)})" for name, metric in zip(names, metrics, strict=True)]
    return table(["language", *columns], body, f"l{'r' * len(columns)}")


def _figure(task: dict[str, Any] | None) -> str:
    if task is None:
        return "-"
    figure = task["metrics"][task["metric"]]
    error = "-" if figure["stderr"] is None else f"{100 * figure['stderr']:.1f}"
    return f"{100 * figure['value']:.1f} ± {error}"


def _mean(tasks: list[dict[str, Any]]) -> str:
    values = [task["metrics"][task["metric"]]["value"] for task in tasks]
    return f"{100 * sum(values) / len(values):.1f} ({len(values)})" if values else "-"


def tables(record: dict[str, Any]) -> str:
    """Markdown tables of the results, at most `AT_ONCE` benchmarks in each, and how to read them."""
    lines = [f"# {_title(record)}", ""]
    for metric in (None, NORMALISED):
        tasks = [task if metric is None else {**task, "metric": metric} for task in record["tasks"].values()]
        tasks = [task for task in tasks if task["metric"] in task["metrics"]]
        if metric and tasks:
            lines += ["## Length-normalised accuracy", ""]
        names = list(dict.fromkeys(task["benchmark"] for task in tasks))
        for start in range(0, len(names), AT_ONCE):
            kept = [task for task in tasks if task["benchmark"] in names[start : start + AT_ONCE]]
            lines += [_table(record, kept), ""]
        if metric is None:
            lines += [
                "% ± standard error over items; means over languages (how many).",
                "",
            ]
        elif tasks:
            lines += ["Log-likelihood of each choice divided by its number of characters; from the same answers.", ""]
    identified = table_rows(record)
    if identified:
        lines += ["## Which language it answered in", "", table(HEADER, identified, "llrrr"), ""]
        lines += ["By lingua, of answers that are long enough (how many).", ""]
    return "\n".join(lines)


def markdown(record: dict[str, Any]) -> str:
    """The content of results.md."""
    lines = [tables(record), *(f"- {note}" for note in record.get("notes", []))]
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items() if value is not None)
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    lines += [f"- {settings}", f"- {versions}", f"- fingerprint {record['model']['fingerprint']}", ""]
    return "\n".join(lines)


def _title(record: dict[str, Any]) -> str:
    mode = ", transform bypassed" if record["settings"]["mode"] == "bypass" else ""
    done = "" if record["status"] == "finished" else f" ({len(record['tasks'])} of {len(record['planned'])} tasks)"
    return f"{record['model']['name']}{mode}{done}"
