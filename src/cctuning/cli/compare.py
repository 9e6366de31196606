"""`cctuning compare RUN RUN [RUN …]`: compare the results of `cctuning evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cctuning.cli.options import Plain
from cctuning.errors import UserError


def main(argv: list[str]) -> None:
    """Compare, and print tables, notes and a summary."""
    parser = Plain("cctuning compare", description="Test whether scored models differ, language by language.")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="DIR",
        help="a directory of `cctuning evaluate`, or NAME=DIR; several with one NAME are training seeds of one system",
    )
    parser.add_argument(
        "--baseline", help="name of the system that others are compared with (default: base, else the first)"
    )
    parser.add_argument("--output", help="new directory for comparison.json and comparison.md")
    parser.add_argument("--draws", type=int, default=10_000, help="bootstrap and Monte Carlo draws")
    args = parser.parse_args(argv)
    from cctuning.evaluation.compare import compare
    from cctuning.evaluation.result_tables import write_comparison
    from cctuning.evaluation.saved_results import parse_runs

    output = Path(args.output) if args.output else None
    if output and output.exists():
        raise UserError(f"--output {output}: exists already; name a new directory.")
    found = compare(parse_runs(args.runs), args.baseline, args.draws)
    if output:
        write_comparison(found, output)
    show(found, output)


def show(comparison: Any, output: Path | None = None) -> None:
    """Print a comparison."""
    from rich.console import Console
    from rich.markdown import Markdown

    from cctuning.evaluation.result_tables import comparison_page

    console = Console(width=None if sys.stdout.isatty() else 140)  # a file is as wide as the table
    console.print(Markdown(comparison_page(comparison, whole=False)))
    for note in comparison.notes:
        print(f"note: {note}")
    if output:
        print(f"comparison: {output}/comparison.json, table: {output}/comparison.md")
    for line in comparison.summary:
        print(line)
