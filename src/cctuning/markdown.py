"""Write Markdown tables, and render templates of Markdown and other plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """A Markdown table.

    Args:
        align: one letter per column, `l` or `r`; columns beyond its end are left-aligned.
    """
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(header), "l")]
    return "\n".join([_row(header), f"| {' | '.join(rules)} |", *(_row(cells) for cells in rows)])


def _row(cells: Sequence[Any]) -> str:
    escaped = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def templates(folder: Path) -> Environment:
    """The jinja templates in `folder`; nothing is escaped, and a line with a statement alone leaves no empty line."""
    loader = FileSystemLoader(folder)
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
