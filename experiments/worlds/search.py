"""One experiment: search settings on the dev split of one base, run the test split of others, sum up.

FOLDER/bases/, FOLDER/cells/   kept by content, shared by all experiments in FOLDER
FOLDER/SETUP/search.json       every setting tried on dev, and the one chosen for each recipe
FOLDER/SETUP/results.json      the summary, with machine and versions
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cctuning.demo.base import ENGLISH
from cctuning.errors import UserError, nearest
from cctuning.files import write_atomically
from cctuning.markdown import table
from experiments.worlds.cells import Cell, run_cells, share
from experiments.worlds.recipes import RECIPES, SETUPS
from experiments.worlds.table import settings_text, summarise

SLACK = 1.0  # points of English that a setting may cost on dev and still be chosen


def experiment(
    setup: str,
    recipes: Sequence[str],
    bases: Sequence[int],
    search_bases: Sequence[int],
    folder: Path,
    workers: int | None = None,
    dev_only: bool = False,
    slack: float = SLACK,
) -> dict[str, Any]:
    """Search, run, write, and return the summary (of the search alone if `dev_only`).

    Args:
        bases: seeds of the bases reported. search_bases: seeds of those that settings are chosen on.

    Raises:
        UserError: an unknown name, or a base in both lists.
    """
    check(setup, recipes, bases, search_bases, slack)
    home = folder / setup
    home.mkdir(parents=True, exist_ok=True)
    found = search(setup, recipes, search_bases, folder, workers, slack) | circumstances()
    write_atomically(home / "search.json", json.dumps(found, indent=1) + "\n")
    if dev_only:
        return found
    cells = {
        name: [Cell(setup, base, name, found["chosen"].get(name, {}), "test") for base in bases]
        for name in ("base", *recipes)
    }
    records = iter(run_cells([cell for own in cells.values() for cell in own], folder, workers))
    results = {name: [next(records) for _ in own] for name, own in cells.items()}
    summary = {"setup": setup, "bases": list(bases), **summarise(SETUPS[setup].make(bases[0]), results)}
    summary |= circumstances()
    write_atomically(home / "results.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def check(setup: str, recipes: Sequence[str], bases: Sequence[int], search_bases: Sequence[int], slack: float) -> None:
    """Raise `UserError` for what cannot be run."""
    for kind, names, known in (("setup", [setup], list(SETUPS)), ("recipe", recipes, list(RECIPES))):
        for name in names:
            if name not in known:
                raise UserError(f"{kind}: {name!r} is not one of {', '.join(known)}.{nearest(name, known)}")
    both = sorted(set(bases) & set(search_bases))
    if both:
        raise UserError(f"--bases {both}: settings are chosen on these; report others.")
    if not slack >= 0:
        raise UserError(f"--english_slack: expected points of English, zero or more, got {slack:g}.")
    for name in recipes:
        RECIPES[name].rows(SETUPS[setup].make(search_bases[0]))


def search(
    setup: str, recipes: Sequence[str], bases: Sequence[int], folder: Path, workers: int | None, slack: float
) -> dict[str, Any]:
    """Run every setting of every recipe on the dev split of `bases`, and choose one for each recipe.

    One rule for all: the best mean over the languages other than English, among the settings that keep English within
    `slack` points of the base's; if none does, the best of those that keep most of it.

    Returns:
        `chosen`: recipe -> settings; `tried`: a line for each setting.
    """
    tries: list[tuple[str, dict[str, Any]]] = [("base", {})]
    tries += [(name, settings) for name in recipes for settings in RECIPES[name].settings()]
    cells = [Cell(setup, base, name, settings) for name, settings in tries for base in bases]
    records, lines = iter(run_cells(cells, folder, workers)), list[dict[str, Any]]()
    for name, settings in tries:
        own = [next(records) for _ in bases]
        x, english = (sum(share(one, languages) for one in own) / len(own) for languages in (None, [ENGLISH]))
        lines.append({"recipe": name, "settings": settings, "x": x, "english": english})
    needed = lines.pop(0)["english"] - slack
    chosen = {}
    for name in recipes:
        tried = [line for line in lines if line["recipe"] == name]
        enough = min(needed, max(line["english"] for line in tried))
        kept = [line for line in tried if line["english"] >= enough]
        chosen[name] = max(kept, key=lambda line: float(line["x"]))["settings"]
    told = {"setup": setup, "search_bases": list(bases), "split": "dev", "english_slack": slack}
    return {**told, "chosen": chosen, "tried": lines}


def circumstances() -> dict[str, Any]:
    """Return machine and versions."""
    packages = ("cc-tuning", "torch", "transformers", "trl", "peft", "babel")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread per cell",
        "versions": {name: version(name) for name in packages},
    }


def report(summary: Mapping[str, Any], found: Mapping[str, Any], tables: str) -> str:
    """Return a page: the command, the machine, the tables, and every setting that was tried."""
    setup, chosen = summary["setup"], found["chosen"]
    names = " ".join(name for name in summary["recipes"] if name in RECIPES)
    command = (
        f"python -m experiments.worlds run {setup} --recipes {names} --bases {' '.join(map(str, summary['bases']))}"
    )
    command += (
        f" --search_bases {' '.join(map(str, found['search_bases']))} --english_slack {found['english_slack']:g}"
    )
    versions = ", ".join(f"{name} {one}" for name, one in summary["versions"].items())
    rows = [
        [
            f"`{one['recipe']}`",
            settings_text(one["settings"]),
            f"{one['x']:.1f}",
            f"{one['english']:.1f}",
            "chosen" if chosen[one["recipe"]] == one["settings"] else "",
        ]
        for one in found["tried"]
    ]
    searched = table(["recipe", "settings", "x", "English", ""], rows)
    parts = [
        f"# {setup}: {SETUPS[setup].says}",
        f"`{command}`",
        f"{summary['machine']}; {versions}.",
        tables.strip(),
        "## What was searched on the dev split",
        searched,
    ]
    return "\n\n".join(parts) + "\n"
