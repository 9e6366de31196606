"""Many cells on all cores: run what is missing, keep what is there, show how far it is.

Each worker is a process of one thread: on models of a million weights that is faster than one process of many threads,
and a record does not depend on how many cores a machine has.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cctuning.demo.worlds import ENGLISH
from cctuning.workers import leave_with
from experiments.worlds.cells import Cell, run
from experiments.worlds.recipes import RECIPES
from experiments.worlds.setups import SETUPS

Record = dict[str, Any]
SLACK = 1.0  # points of English that a setting may cost and still be chosen
Chosen = dict[str, dict[str, Any]]  # recipe -> settings


def run_cells(cells: Sequence[Cell], folder: Path, chosen: Chosen, workers: int | None = None) -> list[Record]:
    """Their records, in the order given.

    Args:
        folder: the lab's: `bases/`, `cells/`, `log/`. chosen: settings of recipes that others start from.
        workers: processes; None: one a core.

    Raises:
        The first error of a cell, after the others in flight have ended; what is finished is kept.
    """
    (folder / "log").mkdir(parents=True, exist_ok=True)
    records: dict[Cell, Record] = {}
    pool = ProcessPoolExecutor(
        workers or os.cpu_count(),
        mp_context=get_context("spawn"),
        initializer=_worker,
        initargs=(str(folder / "log"), os.getpid()),
    )
    with pool, tqdm(total=len(cells), unit="cell", desc="Lab") as bar:
        futures = {pool.submit(run, cell, folder, after(cell, chosen)): cell for cell in cells}
        try:
            for future in as_completed(futures):
                cell = futures[future]
                records[cell] = future.result()
                bar.set_postfix_str(f"{cell.label}: {score(records[cell]):.1f}")
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [records[cell] for cell in cells]


def _worker(log: str, parent: int) -> None:
    """One thread, no hub, and the libraries' words in a file: the parent's bar is what a person watches."""
    leave_with(parent)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    handle = os.open(f"{log}/worker-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def share(record: Record, languages: Sequence[str], way: str = "student") -> float:
    """% right, mean over some languages.

    Args:
        way: `student` (as it runs), `bypass` (without the transform) or `live` (with English at hand).
    """
    flags = [record["right"][way][lang] for lang in languages]
    return float(sum(100 * one.count("1") / len(one) for one in flags) / len(flags))


def score(record: Record, way: str = "student") -> float:
    """`share` of the languages but English."""
    return share(record, [lang for lang in record["right"][way] if lang != ENGLISH], way)


def english(record: Record, way: str = "student") -> float:
    """`share` of English."""
    return share(record, [ENGLISH], way)


def way_of(recipe: str) -> str:
    """How a recipe runs at inference."""
    return "bypass" if recipe in RECIPES and RECIPES[recipe].of else "student"


def cell_of(setup: str, base: int, recipe: str, settings: dict[str, Any], split: str, seed: int = 0) -> Cell:
    """The cell whose record holds the recipe's figures."""
    return Cell(setup, base, RECIPES[recipe].of or recipe, settings, split, seed)


def after(cell: Cell, chosen: Chosen) -> dict[str, Any] | None:
    """Settings of the recipe that the cell starts from."""
    recipe = RECIPES.get(cell.recipe)
    return chosen[recipe.after] if recipe and recipe.after else None


def settings_of(setup: str, recipe: str) -> list[dict[str, Any]]:
    """What the search tries for a recipe: the setup's own list, where it has one."""
    return list(RECIPES[recipe].settings(SETUPS[setup].search or None))


def search(
    setup: str,
    recipes: Sequence[str],
    bases: Sequence[int],
    folder: Path,
    workers: int | None = None,
    slack: float = SLACK,
    ahead: Sequence[Cell] = (),
) -> tuple[Chosen, list[dict[str, Any]]]:
    """Every setting of every recipe on the dev split of `bases`.

    One rule for all: the best mean over the languages but English, among the settings that keep English within `slack`
    points of the base's; where none does, the best of those that keep most of it.

    Args:
        ahead: cells run before it: those of the bases reported, which are made side by side with those searched on.

    Returns:
        Recipe -> its settings by that rule; and a line for each setting tried.
    """
    chosen, lines = Chosen(), list[dict[str, Any]]()
    before = [Cell(setup, base, "base") for base in bases]
    first = list(ahead)
    for later in (False, True):  # a recipe that starts from another is searched after it
        names = [name for name in recipes if bool(RECIPES[name].after) == later]
        tries = [(name, settings) for name in names for settings in settings_of(setup, name)]
        cells = [cell_of(setup, base, name, settings, "dev") for name, settings in tries for base in bases]
        unique = list(dict.fromkeys([*before, *first, *cells]))
        records = dict(zip(unique, run_cells(unique, folder, chosen, workers), strict=True))
        needed, first = sum(english(records[cell]) for cell in before) / len(before) - slack, []
        for name, settings in tries:
            own = [records[cell_of(setup, base, name, settings, "dev")] for base in bases]
            line = {
                "recipe": name,
                "settings": settings,
                "x": sum(score(one, way_of(name)) for one in own) / len(own),
                "english": sum(english(one, way_of(name)) for one in own) / len(own),
            }
            if all("live" in one["right"] for one in own):
                line["live"] = sum(score(one, "live") for one in own) / len(own)
            lines.append(line)
        for name in names:
            own_lines = [line for line in lines if line["recipe"] == name]
            kept = [line for line in own_lines if line["english"] >= needed]
            most = max(line["english"] for line in own_lines)
            best = max(
                kept or [line for line in own_lines if line["english"] == most], key=lambda line: float(line["x"])
            )
            chosen[name] = best["settings"]
    return chosen, lines
