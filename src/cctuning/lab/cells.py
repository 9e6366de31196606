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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cctuning.lab.base import BaseConfig, build_base, fingerprint
from cctuning.lab.recipes import RECIPES, Recipe
from cctuning.lab.setups import SETUPS
from cctuning.lab.worlds import ENGLISH, World
from cctuning.model.adapter import write_atomically

FORMAT = 1  # part of every key: raise it when a record of the same options would differ


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
    place = folder / "cells" / f"{key(cell, world, config, after)}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_suffix(".lock")):
        if place.is_file():
            return dict(json.loads(place.read_text(encoding="utf-8")))
        bases = folder / "bases"
        bases.mkdir(exist_ok=True)
        with locked(bases / f"{fingerprint(world, config)}.lock"):
            base = build_base(world, bases, config, progress=False)
        started = time.time()
        with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
            record = _compute(cell, world, base, Path(scratch), after)
        record = {
            "cell": {**asdict(cell), "settings": dict(cell.settings)},
            "seconds": time.time() - started,
            **record,
        }
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
    content = {
        "format": FORMAT,
        "base": fingerprint(world, config),
        "rows": recipe.rows(world) if recipe else None,
        "recipe": [recipe.method, recipe.trainer, recipe.after] if recipe else None,
        "after": dict(after or {}),
        "cell": [cell.split, cell.seed, dict(cell.settings)],
        "defaults": _defaults(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _defaults() -> dict[str, Any]:
    from cctuning.connection import ConnectionConfig

    return ConnectionConfig().to_dict()


def _compute(cell: Cell, world: World, base: Path, scratch: Path, after: Mapping[str, Any] | None) -> dict[str, Any]:
    from cctuning.model.loading import load

    if cell.recipe == "base":
        return {"right": {"student": right(load(str(base)), world, cell.split)}}
    recipe = RECIPES[cell.recipe]
    start = base
    if recipe.after:
        first = RECIPES[recipe.after]
        train(start, world, first, after or {}, scratch / "first", cell.seed)
        start = scratch / "first" / "model"
    seen = train(start, world, recipe, cell.settings, scratch / "run", cell.seed)
    loaded = load(str(scratch / "run"))
    record: dict[str, Any] = {"tokens": seen, "right": {}}
    record["right"]["student"] = right(loaded, world, cell.split)
    if loaded.connected is not None:
        record["right"]["bypass"] = right(loaded, world, cell.split, bypass=True)
        record["right"]["live"] = right(loaded, world, cell.split, live=True)
    return record


def train(base: Path, world: World, recipe: Recipe, settings: Mapping[str, Any], run: Path, seed: int) -> int:
    """Train as `cctuning train` would, into `run`; how many tokens were read, passes of references included."""
    from cctuning.connection import ConnectionConfig
    from cctuning.training import CCConfig
    from cctuning.training.options import RunOptions
    from cctuning.training.run import train as start

    options: dict[str, Any] = {**recipe.method, **settings}
    of_trainer = ("learning_rate", "num_train_epochs", "connection_lr_scale", "base_decay")
    arguments: dict[str, Any] = {name: options.pop(name) for name in of_trainer if name in options}
    rows = run.parent / f"{run.name}.jsonl"
    rows.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in recipe.rows(world)), encoding="utf-8"
    )
    args = CCConfig(
        str(run),
        per_device_train_batch_size=32,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        max_length=64,
        activation_checkpointing=False,
        logging_steps=0.5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        **arguments,
    )
    trainer = start(RunOptions(model=str(base), data=[str(rows)], **recipe.trainer), ConnectionConfig(**options), args)
    return int(trainer.state.num_input_tokens_seen)


def right(loaded: Any, world: World, split: str, bypass: bool = False, live: bool = False) -> dict[str, str]:
    """Per language, a `1` or `0` a question: whether the greedy answer is exactly the right one.

    Args:
        bypass: without the connection's transform. live: handed the English question, over the live connection.
    """
    from cctuning.serving.answering import Answerer

    answerer = Answerer(loaded, chat=False, bypass=bypass, batch_size=256, max_new_tokens=world.answer_tokens + 1)
    flags = {}
    for lang in world.languages:
        items = world.items(lang, split)
        parallels: Any = [item.prompt_en for item in items] if live and lang != ENGLISH else None
        given = answerer([item.prompt for item in items], parallels)
        flags[lang] = "".join("01"[answer == item.answer] for answer, item in zip(given, items, strict=True))
    return flags
