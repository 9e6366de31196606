"""Show a comparison as tables, and save it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

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


def tables(comparison: Comparison) -> str:
    """A Markdown table with a heading for each system except the baseline, and how to read them."""
    lines = []
    for system, members in comparison.systems.items():
        if system == comparison.baseline:
            continue
        counts = [len(members), len(comparison.systems[comparison.baseline])]
        seeds = "" if counts == [1, 1] else f" ({counts[0]} and {counts[1]} seeds)"
        rows = [row for row in comparison.rows if row.system == system]
        header, body = table_cells(comparison, rows)
        lines += [f"## {system} against {comparison.baseline}{seeds}", ""]
        lines += [table(header, body, f"ll{'r' * (len(header) - 3)}"), ""]
    settings = comparison.settings
    caption = (
        "Values in %, differences in points, paired by item; means (how many) leave out "
        f"{', '.join(settings['reference_languages'])}. 95 % intervals: [items] bootstrap, {settings['draws']} draws; "
        "[seeds] Student's t of runs paired in order. p: sign-flip test, Holm-corrected "
        f"over a benchmark's languages; a mean's p is not corrected. Verdict: p < {settings['alpha']:g}. "
        f"Seed {settings['seed']}."
    )
    return "\n".join([*lines, caption])


def markdown(comparison: Comparison) -> str:
    """The content of comparison.md."""
    lines = [f"# Comparison with {comparison.baseline}", "", tables(comparison), ""]
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
