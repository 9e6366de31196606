"""Show a comparison as tables, and save it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from cctuning.errors import UserError
from cctuning.evaluation.compare import Comparison, Row, difference_text, interval_text
from cctuning.files import write_atomically
from cctuning.markdown import table

FORMAT = 1  # of comparison.json


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


def _tables(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells for each system except the baseline."""
    found = []
    for system, members in comparison.systems.items():
        if system != comparison.baseline:
            counts = [len(members), len(comparison.systems[comparison.baseline])]
            seeds = "" if counts == [1, 1] else f" ({counts[0]} and {counts[1]} seeds)"
            rows = [row for row in comparison.rows if row.system == system]
            found.append((f"{system} against {comparison.baseline}{seeds}", *table_cells(comparison, rows)))
    return found


def _caption(comparison: Comparison) -> str:
    settings = comparison.settings
    return (
        "Values in %, differences in points, paired by item; means (how many) leave out "
        f"{', '.join(settings['reference_languages'])}. 95 % intervals: [items] bootstrap, {settings['draws']} draws; "
        "[seeds] Student's t of runs paired in order. p: sign-flip test, Holm-corrected "
        f"over a benchmark's languages; a mean's p is not corrected. Verdict: p < {settings['alpha']:g}. "
        f"Seed {settings['seed']}."
    )


def terminal(comparison: Comparison) -> list[Table]:
    """A table per system except the baseline."""
    from rich.markup import escape

    tables = []
    for title, header, body in _tables(comparison):
        shown = Table(title=escape(title), caption=escape(_caption(comparison)))
        for number, column in enumerate(header):
            shown.add_column(
                escape(column),
                justify="right" if 2 <= number < len(header) - 1 else "left",
                no_wrap=number in (1, 2),
                overflow="fold",  # a narrow terminal wraps figures instead of cutting them
            )
        for number, line in enumerate(body):
            last = number + 1 == len(body) or body[number + 1][0] != line[0]
            shown.add_row(*map(escape, line), end_section=last)
        tables.append(shown)
    return tables


def markdown(comparison: Comparison) -> str:
    """The content of comparison.md."""
    lines = [f"# Comparison with {comparison.baseline}", ""]
    for title, header, body in _tables(comparison):
        lines += [f"## {title}", "", table(header, body, f"ll{'r' * (len(header) - 3)}"), ""]
    lines += [_caption(comparison), ""]
    lines += [f"- note: {note}" for note in comparison.notes]
    for name, members in comparison.systems.items():
        lines += [
            f"- {name}: {one['directory']}, model {one.get('name')}, mode {one['mode']}, training seed "
            f"{one.get('training_seed')}, fingerprint {one.get('fingerprint')}"
            for one in members
        ]
    return "\n".join([*lines, "", *(f"- {line}" for line in comparison.summary), ""])


def check_output(directory: Path) -> None:
    """Raise a `UserError` if `directory` is a file or not empty."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output {directory}: a file; name a directory.")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"--output {directory}: not empty; name a new directory.")


def write(comparison: Comparison, directory: Path) -> None:
    """Write comparison.json and comparison.md into a new or empty directory."""
    check_output(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, **asdict(comparison)}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(directory / "comparison.json", text)
    write_atomically(directory / "comparison.md", markdown(comparison))
