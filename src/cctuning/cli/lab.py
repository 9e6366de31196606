"""`cctuning lab run SETUP [--recipes …]`, `lab table SETUP`, `lab report SETUP --page FILE`, `lab list`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from cctuning.cli.options import Plain
from cctuning.errors import UserError


def main(argv: list[str]) -> None:
    """Parse and run."""
    parser = Plain("cctuning lab", description="Controlled experiments: search, run, and sum up.")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Plain)
    run = verbs.add_parser("run", help="search settings on the dev split, run the test split, write the table")
    run.add_argument("setup")
    run.add_argument("--recipes", nargs="+", help="default: all")
    run.add_argument("--bases", nargs="+", type=int, default=list(range(6)), help="seeds reported (default 0 to 5)")
    run.add_argument("--search_bases", nargs="+", type=int, default=[100], help="seeds searched on (default 100)")
    run.add_argument("--workers", type=int, help="processes (default one a core)")
    run.add_argument("--dev_only", action="store_true", help="stop after the search")
    table = verbs.add_parser("table", help="print an experiment's table again")
    table.add_argument("setup")
    report = verbs.add_parser("report", help="write or renew an experiment's notebook page")
    report.add_argument("setup")
    report.add_argument("--page", required=True, help="Markdown file; its Question and Conclusion are kept")
    report.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="of the run (default today)")
    for one in (run, table, report):
        one.add_argument("--output", default="lab", help="directory for bases, cells and tables (default lab)")
    verbs.add_parser("list", help="the setups and recipes there are")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    if args.verb == "list":
        from cctuning.lab.recipes import RECIPES
        from cctuning.lab.setups import SETUPS

        print("setups")
        for name, setup in SETUPS.items():
            print(f"  {name:18} {setup.says}")
        print("recipes")
        for name, recipe in RECIPES.items():
            print(f"  {name:18} {recipe.says}")
        return
    from cctuning.lab.table import markdown

    if args.verb == "table":
        place = Path(args.output) / args.setup / "results.json"
        if not place.is_file():
            raise UserError(
                f"{place}: no such file; run `cctuning lab run {args.setup} --output {args.output}` first."
            )
        print(markdown(args.setup, json.loads(place.read_text(encoding="utf-8"))))
        return
    from cctuning.lab.experiment import experiment
    from cctuning.lab.recipes import RECIPES

    found = experiment(
        args.setup,
        args.recipes or list(RECIPES),
        args.bases,
        args.search_bases,
        Path(args.output),
        args.workers,
        args.dev_only,
    )
    if args.dev_only:
        for line in found["tried"]:
            mark = "*" if found["chosen"][line["recipe"]] == line["settings"] else " "
            settings = " ".join(f"{name}={value}" for name, value in line["settings"].items())
            print(f"{mark} {line['recipe']:18} x {line['x']:5.1f}  English {line['english']:5.1f}  {settings}")
        return
    print(markdown(args.setup, found))
    for note in found["unfit"]:
        print(f"note: unfit for conclusions: {note}")
    print(f"results: {args.output}/{args.setup}/results.json, table: {args.output}/{args.setup}/table.md")
