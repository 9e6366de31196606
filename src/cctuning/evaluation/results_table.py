"""Show results as tables: languages as rows, benchmarks as columns, then means and chance.

Length-normalised accuracy has a table of its own, since the first one is the one to compare with published figures.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from cctuning.evaluation.answer_language import HEADER, table_rows
from cctuning.languages import ENGLISH, base, is_code, language_name
from cctuning.markdown import table

NORMALISED = "acc_norm"
METRIC_NAMES = {
    "acc": "accuracy",
    NORMALISED: "acc. by length",
    "exact_match": "exact match",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
}
# Resource classes 0 to 5 of Joshi et al., "The State and Fate of Linguistic Diversity and Inclusion in the NLP World"
# (ACL 2020, arXiv 2004.09095). As usual, 4 and 5 count as high-resource, 3 as mid and 0 to 2 as low.
JOSHI_CLASS = {
    "en": 5, "es": 5, "de": 5, "ja": 5, "fr": 5, "ar": 5, "zh": 5,
    "pt": 4, "it": 4, "ru": 4, "ko": 4, "vi": 4, "tr": 4, "hi": 4, "eu": 4,
    "id": 3, "th": 3, "bn": 3, "ta": 3, "bg": 3, "el": 3, "ur": 3, "et": 3, "ro": 3,
    "sw": 2, "yo": 2, "ht": 2,
    "te": 1, "qu": 1, "my": 1,
}  # fmt: skip
LEVELS = ("high", "mid", "low")


def level(language: str) -> str | None:
    """`high`, `mid` or `low`; None for a language that `JOSHI_CLASS` lacks."""
    found = JOSHI_CLASS.get(base(language)) if is_code(language) else None
    return None if found is None else "high" if found >= 4 else "mid" if found == 3 else "low"


def caption(record: dict[str, Any]) -> str:
    """How to read the table."""
    return (
        "% ± standard error over items; means over languages (how many). Resource levels: Joshi et al. 2020, classes "
        f"4-5 high, 3 mid, 0-2 low; their means leave out {language_name(_reference(record))}."
    )


def _reference(record: dict[str, Any]) -> str:
    return record["model"].get("reference_language") or ENGLISH


def rows(record: dict[str, Any], metric: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text.

    Args:
        metric: metric to show, of the tasks that have it; None for the main metric of each task.
    """
    tasks = [task if metric is None else {**task, "metric": metric} for task in record["tasks"].values()]
    tasks = [task for task in tasks if task["metric"] in task["metrics"]]
    cells = {(task["benchmark"], task["language"]): task for task in tasks}
    metrics = {task["benchmark"]: METRIC_NAMES.get(task["metric"], task["metric"]) for task in tasks}
    chance = {task["benchmark"]: task["chance"] for task in reversed(tasks)}
    reference = _reference(record)
    languages = sorted({task["language"] for task in tasks}, key=lambda one: (one != reference, one))
    body = []
    for language in languages:
        figures = [_figure(cells.get((name, language))) for name in metrics]
        body.append([language, level(language) or "-", *figures])
    others = [one for one in languages if one != reference]
    groups = {"mean": languages, f"mean without {reference}": others}
    groups |= {f"mean {name}": [one for one in others if level(one) == name] for name in LEVELS}
    for label, group in groups.items():
        means = [_mean([cells[name, one] for one in group if (name, one) in cells]) for name in metrics]
        if any(mean != "-" for mean in means):
            body.append([label, "", *means])
    body.append(["chance", "", *("-" if chance[name] is None else f"{100 * chance[name]:.1f}" for name in metrics)])
    return ["language", "resource", *(f"{name} ({metric})" for name, metric in metrics.items())], body


def _figure(task: dict[str, Any] | None) -> str:
    if task is None:
        return "-"
    figure = task["metrics"][task["metric"]]
    error = "-" if figure["stderr"] is None else f"{100 * figure['stderr']:.1f}"
    return f"{100 * figure['value']:.1f} ± {error}"


def _mean(tasks: list[dict[str, Any]]) -> str:
    values = [task["metrics"][task["metric"]]["value"] for task in tasks]
    return f"{100 * sum(values) / len(values):.1f} ({len(values)})" if values else "-"


def terminal(record: dict[str, Any], width: int) -> list[Table]:
    """Tables for a terminal of `width` columns, with as many benchmarks side by side as fit."""
    header, body = rows(record)
    at_once = max(1, (width - 30) // 16)
    tables = []
    for start in range(2, len(header), at_once):
        columns = [0, 1, *range(start, min(start + at_once, len(header)))]
        shown = Table(title=_title(record), title_justify="left")
        for column in columns:
            name = header[column].replace(" (", "\n(")
            shown.add_column(name, justify="left" if column < 2 else "right", no_wrap=True)
        for number, row in enumerate(body):
            ends = row[0] != "chance" and body[number + 1][0] in ("mean", "chance")
            shown.add_row(*(row[column] for column in columns), end_section=ends)
        tables.append(shown)
    identified = table_rows(record)
    if identified:
        shown = Table(*HEADER, title="Which language it answered in", title_justify="left")
        for row in identified:
            shown.add_row(*row)
        tables.append(shown)
    return tables


def markdown(record: dict[str, Any]) -> str:
    """The content of results.md."""

    def figures(metric: str | None = None) -> str:
        header, body = rows(record, metric)
        return table(header, body, f"ll{'r' * len(header)}")

    lines = [f"# {_title(record)}", "", figures(), "", caption(record), ""]
    if any(NORMALISED in task["metrics"] for task in record["tasks"].values()):
        lines += ["## Length-normalised accuracy", "", figures(NORMALISED), ""]
        lines += ["Log-likelihood of each choice divided by its number of characters; from the same answers.", ""]
    identified = table_rows(record)
    if identified:
        lines += ["## Which language it answered in", "", table(HEADER, identified, "llrrr"), ""]
        lines += ["By lingua, of answers that are long enough (how many).", ""]
    lines += [f"- {note}" for note in record.get("notes", [])]
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items() if value is not None)
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    lines += [f"- {settings}", f"- {versions}", f"- fingerprint {record['model']['fingerprint']}", ""]
    return "\n".join(lines)


def _title(record: dict[str, Any]) -> str:
    live = f", with the prompt in {language_name(_reference(record))}"
    mode = {"student": "", "bypass": ", transform bypassed", "parallel": live}
    done = "" if record["status"] == "finished" else f" ({len(record['tasks'])} of {len(record['planned'])} tasks)"
    return f"{record['model']['name']}{mode[record['settings']['mode']]}{done}"
