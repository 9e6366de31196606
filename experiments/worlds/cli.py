"""Compare recipes in made-up worlds: `python -m experiments.worlds run|table|report|list`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cctuning.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.worlds", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="search settings on the dev split, run the test split, print the table")
    run.add_argument("--recipes", nargs="+", default=["vanilla+replay", "default+replay", "cc-start+replay"])
    run.add_argument("--bases", nargs="+", type=int, default=list(range(6)), help="seeds reported (default 0 to 5)")
    run.add_argument("--search_bases", nargs="+", type=int, default=[100], help="seeds searched on (default 100)")
    run.add_argument("--english_slack", type=float, default=1.0, help="points of English that a setting may cost")
    run.add_argument("--workers", type=int, help="processes (default: one per core)")
    run.add_argument("--dev_only", action="store_true", help="stop after the search")
    table = commands.add_parser("table", help="print the table again")
    report = commands.add_parser("report", help="write a page with the command, the tables and the search")
    report.add_argument("--page", type=Path, required=True, help="new Markdown file")
    for one in (run, table, report):
        one.add_argument("setup")
        one.add_argument("--output", type=Path, default=Path("lab"), help="directory of all files (default lab)")
    commands.add_parser("list", help="the setups and recipes")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        {"run": _run, "table": _table, "report": _report, "list": _list}[args.command](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    from experiments.worlds.search import experiment
    from experiments.worlds.table import markdown, settings_text

    found = experiment(
        args.setup,
        args.recipes,
        args.bases,
        args.search_bases,
        args.output,
        args.workers,
        args.dev_only,
        args.english_slack,
    )
    if not args.dev_only:
        print(markdown(args.setup, found))
        return
    for line in found["tried"]:
        mark = "*" if found["chosen"][line["recipe"]] == line["settings"] else " "
        figures = f"x {line['x']:5.1f}  English {line['english']:5.1f}"
        print(f"{mark} {line['recipe']:28} {figures}  {settings_text(line['settings'])}")


def _read(args: argparse.Namespace, name: str) -> Any:
    place = args.output / args.setup / name
    if not place.is_file():
        command = f"python -m experiments.worlds run {args.setup} --output {args.output}"
        raise UserError(f"{place}: no such file; run `{command}` first.")
    return json.loads(place.read_text(encoding="utf-8"))


def _table(args: argparse.Namespace) -> None:
    from experiments.worlds.table import markdown

    print(markdown(args.setup, _read(args, "results.json")))


def _report(args: argparse.Namespace) -> None:
    from experiments.worlds.search import report
    from experiments.worlds.table import markdown

    if args.page.exists():
        raise UserError(f"--page {args.page}: exists already; name a new file.")
    summary = _read(args, "results.json")
    args.page.write_text(report(summary, _read(args, "search.json"), markdown(args.setup, summary)), encoding="utf-8")
    print(f"page: {args.page}")


def _list(args: argparse.Namespace) -> None:
    from experiments.worlds.recipes import RECIPES, SETUPS

    for title, entries in (("setups", SETUPS), ("recipes", RECIPES)):
        print(title)
        for name, entry in entries.items():
            print(f"  {name:28} {entry.says}")
