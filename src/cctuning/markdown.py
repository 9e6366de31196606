"""Write Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


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
