"""One cell of the lab: a world, a base, a recipe with its settings and a seed give a record, kept by content.

A record says per split, language and way of running which questions were answered right, so that every table and
interval is computed from records and nothing is scored twice. Its key is a hash of all that decides it: the base's
fingerprint, the rows, the options, the split. The model itself is not kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cctuning.demo.base import BaseConfig, build_base, fingerprint
from cctuning.demo.tuning import OF_TRAINER, connection, options, right
from cctuning.demo.worlds import World
from cctuning.files import write_atomically
from cctuning.model.loading import Loaded, load
from cctuning.training.run import train as start
from experiments.worlds.recipes import RECIPES, Recipe
from experiments.worlds.rivals import Job, tokens_read
from experiments.worlds.setups import SETUPS
from experiments.worlds.tico import data_folder

FORMAT = 4  # part of every key: raise it when a record of the same options would differ


@dataclass(frozen=True)
class Cell:
    """What to train and where to score it.

    Attributes:
        setup: which world and base (setups.py). base: seed of world and base. recipe: its name.
        settings: learning_rate, num_train_epochs, and options of the connection that differ from the recipe's.
        split: `dev` or `test`. seed: of training.
    """

    setup: str
    base: int
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str = "dev"
    seed: int = 0

    def __hash__(self) -> int:
        return hash((self.setup, self.base, self.recipe, json.dumps(dict(self.settings)), self.split, self.seed))

    @property
    def label(self) -> str:
        shown = " ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.setup} base {self.base} {self.recipe} {shown} ({self.split})"


def world_and_base(setup: str, base: int) -> tuple[World, BaseConfig]:
    """The world and how its base is made."""
    chosen = SETUPS[setup]
    return chosen.world(base), chosen.base(base)


def run(cell: Cell, folder: Path, after: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The cell's record, computed where `folder` lacks it.

    Args:
        after: settings of the recipe that this one starts from.
    """
    world, config = world_and_base(cell.setup, cell.base)
    told = {**asdict(cell), "settings": dict(cell.settings)}
    place = folder / "cells" / f"{key(cell, world, config, after)}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_suffix(".lock")):
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8")) | {"cell": told}  # maybe made for another recipe
        bases = folder / "bases"
        bases.mkdir(exist_ok=True)
        with locked(bases / f"{fingerprint(world, config)}.lock"):
            base = build_base(world, bases, config, progress=False)
        started = time.time()
        with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
            record = _compute(cell, world, config, base, Path(scratch), after)
        record = {"cell": told, "seconds": time.time() - started, **record}
        write_atomically(place, json.dumps(record) + "\n")
    return record


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the file `place` for this process, so that two of them never compute the same; a killed one lets go."""
    with place.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def key(cell: Cell, world: World, config: BaseConfig, after: Mapping[str, Any] | None) -> str:
    """Hash of all that decides the record."""
    recipe = RECIPES.get(cell.recipe)
    content: dict[str, Any] = {
        "format": FORMAT,
        "base": fingerprint(world, config),
        "rows": recipe.rows(world) if recipe else None,
        "recipe": _decides(recipe, cell.settings) if recipe else None,
        "after": _decides(RECIPES[recipe.after], after or {}) if recipe and recipe.after else None,
        "cell": [cell.split, cell.seed],
    }
    content |= _of_setup(cell)
    if "benchmarks" in content:
        content["data"] = _files_of(content["benchmarks"])
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _of_setup(cell: Cell) -> dict[str, Any]:
    """What the setup itself decides, named only where it does: records made before keep their place."""
    setup = SETUPS[cell.setup]
    found = {"trained": dict(setup.trained), "benchmarks": setup.benchmarks if cell.split == "test" else ()}
    return {name: value for name, value in found.items() if value}


def _files_of(benchmarks: Sequence[str]) -> dict[str, str]:
    """Every file of theirs that there is, with its hash: figures on other rows are another record."""
    from cctuning.evaluation.suites import SOURCE  # lm-eval takes seconds to import, and most worlds need none

    root = data_folder() / "benchmarks"
    folders = [root / one.dataset for one in SOURCE if one.name in benchmarks]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def _decides(recipe: Recipe, settings: Mapping[str, Any]) -> list[Any]:
    """What a recipe comes to: two that resolve to the same options are one cell, also when a default has moved."""
    chosen = {**recipe.method, **settings}
    if recipe.rival:
        return [recipe.rival.__name__, chosen]
    trainer = {name: value for name, value in chosen.items() if name in OF_TRAINER}
    config = connection(chosen)
    config = replace(config, align_weight=config.weight, align_loss=config.loss)  # a default that is said is the same
    return [config.to_dict(), trainer, recipe.trainer]


def _compute(
    cell: Cell, world: World, config: BaseConfig, base: Path, scratch: Path, after: Mapping[str, Any] | None
) -> dict[str, Any]:
    of_setup = _of_setup(cell)
    benchmarks, trained = of_setup.get("benchmarks", ()), of_setup.get("trained", {})
    if cell.recipe == "base":
        scored = {"benchmarks": public(base, world, benchmarks, scratch)} if benchmarks else {}
        return {"right": {"student": flags_of(load(str(base)), world, cell.split)}, **scored}
    recipe, place, tokens = RECIPES[cell.recipe], base, 0
    if recipe.rival:
        settings = {**recipe.method, **cell.settings}
        job = Job(base, config, world, recipe.rows(world), settings, cell.split, cell.seed, scratch, trained)
        tokens, found = recipe.rival(job)
        return {"tokens": tokens, "right": {"student": written(found)}}
    if recipe.after:
        tokens = train(place, world, RECIPES[recipe.after], after or {}, scratch / "first", cell.seed, trained)
        place = scratch / "first" / "model"
    tokens += train(place, world, recipe, cell.settings, scratch / "run", cell.seed, trained)
    loaded = load(str(scratch / "run"))
    flags = {"student": flags_of(loaded, world, cell.split)}
    if loaded.connected is not None:
        flags["bypass"] = flags_of(loaded, world, cell.split, bypass=True)
        flags["live"] = flags_of(loaded, world, cell.split, live=True)
    scored = {"benchmarks": public(scratch / "run", world, benchmarks, scratch)} if benchmarks else {}
    return {"tokens": tokens, "right": flags, **scored}


def train(
    base: Path,
    world: World,
    recipe: Recipe,
    settings: Mapping[str, Any],
    run: Path,
    seed: int,
    trained: Mapping[str, Any],
) -> int:
    """Train as `cctuning train` would, into `run`; how many tokens were read, those of references included."""
    rows = run.parent / f"{run.name}.jsonl"
    rows.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in recipe.rows(world)), encoding="utf-8"
    )
    chosen, connection, args = options(base, rows, run, {**recipe.method, **settings}, seed, trained, **recipe.trainer)
    args.disable_tqdm = True
    return tokens_read(start(chosen, connection, args))


def asked(world: World, benchmarks: Sequence[str]) -> dict[str, Any]:
    """How `cctuning evaluate` is asked for them, in the languages of the world that any of them has."""
    from cctuning.evaluation.suites import SOURCE  # as above

    tasks = [one.tasks for one in SOURCE if one.name in benchmarks]
    languages = [lang for lang in world.languages if any(lang in own for own in tasks)]
    return {"languages": languages, "benchmarks": list(benchmarks), "data": str(data_folder() / "benchmarks")}


def public(model: Path, world: World, benchmarks: Sequence[str], scratch: Path) -> dict[str, dict[str, float]]:
    """Benchmark -> language -> its main metric in %, as `cctuning evaluate` gives it for a world of real text."""
    from cctuning.evaluation.run import Options, evaluate

    options = Options(**asked(world, benchmarks))
    found: dict[str, dict[str, float]] = {name: {} for name in benchmarks}
    for task in evaluate(str(model), scratch / "evaluated", options)["tasks"].values():
        found[task["benchmark"]][task["language"]] = 100 * task["metrics"][task["metric"]]["value"]
    return found


def check_rows(setup: str, base: int) -> None:
    """Raise `UserError` where rows that a world of real text will need are not there: now, and not after training."""
    world, benchmarks = SETUPS[setup].world(base), SETUPS[setup].benchmarks
    if benchmarks:
        from cctuning.evaluation.suite_tasks import load_suite

        wanted = asked(world, benchmarks)
        load_suite("source", wanted["languages"], Path(wanted["data"]), wanted["benchmarks"])


def flags_of(loaded: Loaded, world: World, split: str, **how: Any) -> dict[str, str]:
    """`right`, as records keep it."""
    return written(right(loaded, world, split, **how))


def written(found: Mapping[str, list[bool]]) -> dict[str, str]:
    """A `1` or `0` a question."""
    return {lang: "".join("01"[one] for one in flags) for lang, flags in found.items()}
