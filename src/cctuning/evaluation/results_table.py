"""Results as a table: languages down, benchmarks across, averages below, chance beside each accuracy.

Length-normalised accuracy is a table of its own in the Markdown: beside each accuracy it would make rows that do not
fit a page, and the first table is the one that is comparable with anybody's.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from cctuning.evaluation import answer_language
from cctuning.languages import ENGLISH, base, is_code, language_name
from cctuning.markdown import table

NORMALISED = "acc_norm"
MAIN = {
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
    """`high`, `mid` or `low`; None for a language that is not on our copy of the list."""
    found = JOSHI_CLASS.get(base(language)) if is_code(language) else None
    return None if found is None else "high" if found >= 4 else "mid" if found == 3 else "low"


def caption(record: dict[str, Any]) -> str:
    """What the figures are."""
    return (
        "% ± standard error over items; means over languages (how many). Resource levels: Joshi et al. 2020, classes "
        f"4-5 high, 3 mid, 0-2 low; {language_name(_reference(record))} is in none of the three."
    )


def _reference(record: dict[str, Any]) -> str:
    return record["model"].get("reference_language") or ENGLISH


def rows(record: dict[str, Any], metric: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text. Figures are % with standard error; a cell without a figure is a dash.

    Args:
        metric: the figure to show, of the tasks that have it; None: each task's main one.
    """
    tasks = [task if metric is None else {**task, "metric": metric} for task in record["tasks"].values()]
    tasks = [task for task in tasks if task["metric"] in task["metrics"]]
    benchmarks = list(dict.fromkeys(task["benchmark"] for task in tasks))
    cells = {(task["benchmark"], task["language"]): task for task in tasks}
    reference = _reference(record)
    languages = sorted({task["language"] for task in tasks}, key=lambda one: (one != reference, one))
    told = {task["benchmark"]: MAIN.get(task["metric"], task["metric"]) for task in tasks}
    header = ["language", "resource", *(f"{name} ({told[name]})" for name in benchmarks)]
    body = []
    for language in languages:
        row = [language, level(language) or "-"]
        for name in benchmarks:
            task = cells.get((name, language))
            if task is None:
                row.append("-")
                continue
            figure = task["metrics"][task["metric"]]
            error = "-" if figure["stderr"] is None else f"{100 * figure['stderr']:.1f}"
            row.append(f"{100 * figure['value']:.1f} ± {error}")
        body.append(row)
    others = [one for one in languages if one != reference]
    groups = {"mean": languages, f"mean without {reference}": others}
    groups |= {f"mean {name}": [one for one in others if level(one) == name] for name in LEVELS}
    for label, group in groups.items():
        means = [_mean([cells[name, one] for one in group if (name, one) in cells]) for name in benchmarks]
        if any(mean != "-" for mean in means):
            body.append([label, "", *means])
    chances = [next((task["chance"] for task in tasks if task["benchmark"] == name), None) for name in benchmarks]
    body.append(["chance", "", *("-" if chance is None else f"{100 * chance:.1f}" for chance in chances)])
    return header, body


def _mean(tasks: list[dict[str, Any]]) -> str:
    values = [task["metrics"][task["metric"]]["value"] for task in tasks]
    return f"{100 * sum(values) / len(values):.1f} ({len(values)})" if values else "-"


def terminal(record: dict[str, Any], width: int) -> list[Table]:
    """The same for a terminal of `width` columns: as many benchmarks beside each other as it holds, the rest below."""
    header, body = rows(record)
    at_once = max(1, (width - 30) // 16)
    tables = []
    for start in range(2, len(header), at_once):
        columns = [0, 1, *range(start, min(start + at_once, len(header)))]
        table = Table(title=_title(record), title_justify="left")
        for column in columns:
            table.add_column(
                header[column].replace(" (", "\n("), justify="left" if column < 2 else "right", no_wrap=True
            )
        for number, row in enumerate(body):
            ends = row[0] != "chance" and body[number + 1][0] in ("mean", "chance")
            table.add_row(*(row[column] for column in columns), end_section=ends)
        tables.append(table)
    told = answer_language.rows(record)
    if told:
        table = Table(*answer_language.HEADER, title="Which language it answered in", title_justify="left")
        for row in told:
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown(record: dict[str, Any]) -> str:
    """The same, as Markdown."""
    header, body = rows(record)
    lines = [f"# {_title(record)}", "", table(header, body, "ll" + "r" * len(header)), "", caption(record), ""]
    if any(NORMALISED in task["metrics"] for task in record["tasks"].values()):
        lines += ["## Length-normalised accuracy", "", table(*rows(record, NORMALISED), "ll" + "r" * len(header)), ""]
        lines += ["Each choice's log-likelihood divided by its characters; from the same answers.", ""]
    told = answer_language.rows(record)
    if told:
        lines += ["## Which language it answered in", "", table(answer_language.HEADER, told, "llrrr"), ""]
        lines += ["By lingua, of the answers that are long enough to tell (how many).", ""]
    lines += [f"- {note}" for note in record.get("notes", [])]
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items() if value is not None)
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    lines += [f"- {settings}", f"- {versions}", f"- fingerprint {record['model']['fingerprint']}", ""]
    return "\n".join(lines)


def _title(record: dict[str, Any]) -> str:
    live = f", {language_name(_reference(record))} prompt as reference"
    mode = {"student": "", "bypass": ", transform bypassed", "parallel": live}
    done = "" if record["status"] == "finished" else f" ({len(record['tasks'])} of {len(record['planned'])} tasks)"
    return f"{record['model']['name']}{mode[record['settings']['mode']]}{done}"
