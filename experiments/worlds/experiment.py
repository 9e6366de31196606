"""One experiment from one command: search on the dev split, run on the test split of other bases, sum up.

LAB/bases/, LAB/cells/    kept by content, shared by all experiments in LAB
LAB/SETUP/search.json     every setting tried on the dev split, and the one chosen for each recipe
LAB/SETUP/results.json    the summary (table.py) with machine and versions
LAB/SETUP/table.md        the same as Markdown
LAB/SETUP/records.jsonl   every record behind it: which question was answered right, by which recipe, on which base
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cctuning.errors import UserError, nearest
from cctuning.files import write_atomically
from experiments.worlds.cells import Cell, check_rows, world_and_base
from experiments.worlds.grid import SLACK, cell_of, run_cells, search
from experiments.worlds.recipes import RECIPES
from experiments.worlds.setups import SETUPS
from experiments.worlds.table import markdown, summarise

ENOUGH_ENGLISH, FULL, ROOM = 90.0, 90.0, 5.0  # % right: what makes a base fit for a comparison


def experiment(
    setup: str,
    recipes: Sequence[str],
    bases: Sequence[int],
    search_bases: Sequence[int],
    folder: Path,
    workers: int | None = None,
    dev_only: bool = False,
    settings_of: str | None = None,
    slack: float = SLACK,
) -> dict[str, Any]:
    """Search, run, write, and return the summary (of the search alone where `dev_only`).

    Args:
        setup, recipes: names. bases: seeds of the bases reported. search_bases: seeds of those the settings are chosen
            on, none of the former. folder: where everything is kept.
        settings_of: the setup whose settings are taken over, in place of a search.
        slack: points of English that a setting may cost on the dev split and still be chosen.

    Raises:
        UserError: an unknown name, a base in both lists, or a recipe that the setup's own search would not leave as
            it is.
    """
    check(setup, recipes, bases, search_bases, slack, bool(settings_of))
    home = folder / setup
    home.mkdir(parents=True, exist_ok=True)
    if settings_of:
        found = _taken_over(folder / settings_of / "search.json", recipes)
    else:
        reported = [] if dev_only else [Cell(setup, base, "base", split="test") for base in bases]
        chosen, tried = search(setup, recipes, search_bases, folder, workers, slack, reported)
        found = {"setup": setup, "search_bases": list(search_bases), "split": "dev", "english_slack": slack}
        found |= {"chosen": chosen, "tried": tried}
        found |= circumstances()
    chosen = found["chosen"]
    write_atomically(home / "search.json", json.dumps(found, indent=1) + "\n")
    if dev_only:
        return found
    names = ["base", *recipes]
    cells = {
        name: [
            cell_of(setup, base, name, chosen[name], "test")
            if name in RECIPES
            else Cell(setup, base, name, split="test")
            for base in bases
        ]
        for name in names
    }
    # Recipe by recipe, so that workers begin with different bases and make them side by side.
    unique = list(dict.fromkeys(cell for name in names for cell in cells[name]))
    records = dict(zip(unique, run_cells(unique, folder, chosen, workers), strict=True))
    results = {name: [records[cell] for cell in own] for name, own in cells.items()}
    worlds = [world_and_base(setup, base)[0] for base in bases]
    summary = {"setup": setup, "bases": list(bases), **summarise(worlds, results)}
    summary["unfit"] = unfit(summary)
    summary |= circumstances()
    write_atomically(home / "results.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_atomically(home / "table.md", markdown(setup, summary))
    write_atomically(home / "records.jsonl", "".join(json.dumps(record) + "\n" for record in records.values()))
    return summary


def _taken_over(place: Path, recipes: Sequence[str]) -> dict[str, Any]:
    if not place.is_file():
        raise UserError(f"{place}: no such file; run the setup whose settings are to be taken over first.")
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    missing = [name for name in recipes if name not in found["chosen"]]
    if missing:
        raise UserError(f"{place}: has no settings of {', '.join(missing)}; search them there first.")
    tried = [line for line in found["tried"] if line["recipe"] in recipes]
    return found | {"chosen": {name: found["chosen"][name] for name in recipes}, "tried": tried}


def searchable(setup: str) -> list[str]:
    """The recipes that are what they say with the setup's own search in place of theirs; all, where it has none."""
    own = setup in SETUPS and SETUPS[setup].search
    return [name for name, recipe in RECIPES.items() if recipe.usual_search or not own]


def check(
    setup: str,
    recipes: Sequence[str],
    bases: Sequence[int],
    search_bases: Sequence[int],
    slack: float = SLACK,
    taken_over: bool = False,
) -> None:
    """Raise `UserError` for what cannot be run; `taken_over`: without a search."""
    for kind, names, known in (("setup", [setup], list(SETUPS)), ("recipe", recipes, list(RECIPES))):
        for name in names:
            if name not in known:
                raise UserError(f"{kind}: {name!r} is not one of {', '.join(known)}.{nearest(name, known)}")
    lost = [] if taken_over else [name for name in recipes if name not in searchable(setup)]
    if lost:
        raise UserError(
            f"setup {setup}: its own search ({', '.join(SETUPS[setup].search)}) would take the place of what "
            f"{', '.join(lost)} should be searched for; leave them out, or take settings over with --settings_of."
        )
    for name in recipes:
        needed = RECIPES[name].after
        if needed and needed not in recipes:
            raise UserError(f"recipe {name} starts from {needed}'s tuned model: add {needed} to the recipes.")
    both = sorted(set(bases) & set(search_bases))
    if both:
        raise UserError(f"bases {both}: settings are chosen on them; report others.")
    if not bases or not search_bases:
        raise UserError("bases: expected at least one to report and one to search on.")
    if not slack >= 0:
        raise UserError(f"english_slack: expected points of English, zero or more, got {slack:g}.")
    check_rows(setup, search_bases[0])


def unfit(summary: Mapping[str, Any]) -> list[str]:
    """What makes the comparison say little: a base without English, plain SFT at the floor or the ceiling."""
    notes = []
    english = summary["recipes"]["base"]["english"]
    if english < ENOUGH_ENGLISH:
        notes.append(f"the bases answer {english:.0f} % in English: there is little to carry over")
    plain = summary["recipes"].get("vanilla") or summary["recipes"].get("vanilla+replay")
    if plain:
        x, floor = plain["x"], max(summary["majority"], summary["chance"])
        if x > FULL:
            notes.append(f"plain SFT reaches {x:.0f} %: it leaves no room")
        if x < floor + ROOM:
            best = max(entry["x"] for name, entry in summary["recipes"].items() if name != "base")
            what = "nothing crosses by any recipe" if best < floor + ROOM else "little crosses by itself"
            notes.append(f"plain SFT reaches {x:.0f} %, the floor is {floor:.0f} %: {what}")
    return notes


def circumstances() -> dict[str, Any]:
    """Machine and versions."""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ("cc-tuning", "torch", "transformers", "trl", "peft", "babel")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a cell{card}",
        "versions": {name: version(name) for name in packages},
    }
