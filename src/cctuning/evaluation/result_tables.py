"""Show results and comparisons as Markdown tables, and write comparisons.

Tables of results have languages as rows and benchmarks as columns, then means and chance. Length-normalised accuracy
has a separate table; compare the first one with published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cctuning.evaluation.answer_language import HEADER, table_rows
from cctuning.files import write_atomically, write_json
from cctuning.languages import ENGLISH
from cctuning.markdown import table, templates

if TYPE_CHECKING:
    from cctuning.evaluation.compare import Comparison, Row

TEMPLATES = templates(Path(__file__).parent)
TEMPLATES.filters["pairs"] = lambda values: ", ".join(f"{key} {one}" for key, one in values.items() if one is not None)
COMPARISON_FORMAT = 1
NORMALISED = "acc_norm"
METRIC_NAMES = {
    "acc": "accuracy",
    NORMALISED: "acc. by length",
    "exact_match": "exact match",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
}
AT_ONCE = 5  # benchmarks side by side, as a terminal has room for


def _tables(tasks: list[dict[str, Any]], reference: str) -> list[str]:
    """Markdown tables of the main metric of `tasks`, at most `AT_ONCE` benchmarks in each."""
    names = list(dict.fromkeys(task["benchmark"] for task in tasks))
    parts = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    return [_table([task for task in tasks if task["benchmark"] in part], reference) for part in parts]


def _table(tasks: list[dict[str, Any]], reference: str) -> str:
    cells = {(task["benchmark"], task["language"]): task for task in tasks}
    benchmarks = {task["benchmark"]: task for task in tasks}
    languages = sorted({task["language"] for task in tasks}, key=lambda one: (one != reference, one))
    body = [[language, *(_figure(cells.get((name, language))) for name in benchmarks)] for language in languages]
    others = [one for one in languages if one != reference]
    for label, group in {"mean": languages, f"mean without {reference}": others}.items():
        means = [_mean([cells[name, one] for one in group if (name, one) in cells]) for name in benchmarks]
        body += [[label, *means]] if group else []
    chances = [task["chance"] for task in benchmarks.values()]
    body.append(["chance", *("-" if chance is None else f"{100 * chance:.1f}" for chance in chances)])
    metrics = {name: METRIC_NAMES.get(task["metric"], task["metric"]) for name, task in benchmarks.items()}
    columns = [f"{name} ({metric})" for name, metric in metrics.items()]
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


def results_page(record: dict[str, Any], whole: bool = True) -> str:
    """The tables of results and how to read them; `whole`: with notes, settings and versions, as in results.md."""
    reference = record["model"].get("reference_language") or ENGLISH
    tasks = list(record["tasks"].values())
    normalised = [{**task, "metric": NORMALISED} for task in tasks if NORMALISED in task["metrics"]]
    identified = table_rows(record)
    return TEMPLATES.get_template("results.md.jinja").render(
        {"notes": [], **record},
        tables=_tables(tasks, reference),
        normalised=_tables(normalised, reference),
        identified=table(HEADER, identified, "llrrr") if identified else "",
        whole=whole,
    )


# -- comparisons ---------------------------------------------------------------------------------------------------


def difference_text(row: Row) -> str:
    """A difference with its interval over items, in points."""
    return f"{100 * row.difference:+.1f} {interval_text(row.low, row.high)}" if row.difference is not None else "-"


def interval_text(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return "-" if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def table_cells(comparison: Comparison, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the rows of one system."""
    seeds = any(row.seed_low is not None for row in rows)
    header = ["benchmark", "language", "n", comparison.baseline, rows[0].system, "difference [items]"]
    header += (["[seeds]"] if seeds else []) + ["p (Holm)", "verdict"]
    body = []
    for row in rows:
        p = "-" if row.p_adjusted is None else f"{row.p_adjusted:.2g}" if row.p_adjusted < 1 else "1"
        body.append(
            [
                row.benchmark or "all",
                row.language or f"mean ({row.languages})",
                str(row.items) if row.items else "-",
                *("-" if one is None else f"{100 * one:.1f}" for one in (row.baseline, row.value)),
                difference_text(row),
                *([interval_text(row.seed_low, row.seed_high)] if seeds else []),
                p,
                row.verdict,
            ]
        )
    return header, body


def comparison_page(comparison: Comparison, whole: bool = True) -> str:
    """A table for each system except the baseline, and how to read it; `whole`: with notes and summary."""
    tables = {}
    for system in comparison.systems:
        if rows := [row for row in comparison.rows if row.system == system]:
            header, body = table_cells(comparison, rows)
            tables[system] = table(header, body, f"ll{'r' * (len(header) - 3)}")
    return TEMPLATES.get_template("comparison.md.jinja").render(vars(comparison), tables=tables, whole=whole)


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write comparison.json and comparison.md."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "comparison.json", {"format": COMPARISON_FORMAT, **asdict(comparison)})
    write_atomically(directory / "comparison.md", comparison_page(comparison))
