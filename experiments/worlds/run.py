"""The command line of the made-up worlds: `python -m experiments.worlds run|table|report|list`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cctuning.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 where the input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m experiments.worlds", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=argparse.ArgumentParser)
    run = verbs.add_parser("run", help="search settings on the dev split, run the test split, write the table")
    run.add_argument("--recipes", nargs="+", help="default: all that the setup can search")
    run.add_argument("--bases", nargs="+", type=int, default=list(range(6)), help="seeds reported (default 0 to 5)")
    run.add_argument("--search_bases", nargs="+", type=int, default=[100], help="seeds searched on (default 100)")
    run.add_argument(
        "--english_slack", type=float, default=1.0, help="points of English a setting may cost on dev (default 1)"
    )
    run.add_argument("--settings_of", metavar="SETUP", help="no search: the settings found for that setup")
    run.add_argument("--workers", type=int, help="processes (default one a core)")
    run.add_argument("--dev_only", action="store_true", help="stop after the search")
    table = verbs.add_parser("table", help="print an experiment's table again")
    report = verbs.add_parser("report", help="write or renew an experiment's notebook page")
    report.add_argument(
        "--page", required=True, help="Markdown file; its Question, and from its Conclusion on all, are kept"
    )
    report.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="of the run (default today)")
    for one in (run, table, report):
        one.add_argument("setup")
        one.add_argument("--output", default="lab", help="directory for bases, cells and tables (default lab)")
    verbs.add_parser("list", help="the setups and recipes there are")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    try:
        {"run": _run, "table": _table, "report": _report, "list": _list}[args.verb](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _list(args: Any) -> None:
    from experiments.worlds.recipes import RECIPES
    from experiments.worlds.setups import SETUPS

    for title, entries in (("setups", SETUPS), ("recipes", RECIPES)):
        print(title)
        for name, entry in entries.items():
            print(f"  {name:18} {entry.says}")


def _finished(args: Any) -> Path:
    place = Path(args.output) / args.setup / "results.json"
    if not place.is_file():
        raise UserError(
            f"{place}: no such file; run `python -m experiments.worlds run {args.setup} --output {args.output}` first."
        )
    return place


def _table(args: Any) -> None:
    from experiments.worlds.table import markdown

    print(markdown(args.setup, json.loads(_finished(args).read_text(encoding="utf-8"))))


def _report(args: Any) -> None:
    from experiments.worlds.page import write_page

    write_page(args.setup, _finished(args).parent.parent, Path(args.page), args.date)
    print(f"page: {args.page}")


def _run(args: Any) -> None:
    from experiments.worlds.experiment import experiment, searchable
    from experiments.worlds.table import markdown

    found = experiment(
        args.setup,
        args.recipes or searchable(args.setup),
        args.bases,
        args.search_bases,
        Path(args.output),
        args.workers,
        args.dev_only,
        args.settings_of,
        args.english_slack,
    )
    if args.dev_only:
        for line in found["tried"]:
            mark = "*" if found["chosen"][line["recipe"]] == line["settings"] else " "
            settings = " ".join(f"{name}={value}" for name, value in line["settings"].items())
            live = f"live {line['live']:5.1f}" if "live" in line else ""
            figures = f"x {line['x']:5.1f}  English {line['english']:5.1f}  {live:10}"
            print(f"{mark} {line['recipe']:18} {figures}  {settings}")
        return
    print(markdown(args.setup, found))
    for note in found["unfit"]:
        print(f"note: to be read with care: {note}")
    print(f"results: {args.output}/{args.setup}/results.json, table: {args.output}/{args.setup}/table.md")
