"""One cell: a setup, a base, a recipe with its settings and a split give a record, which is kept by content.

A record says for each language, and each way of running, which questions were answered right. Its key is a hash of all
that decides it: the base, the rows, the options and the split. Models are not kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from cctuning.demo.base import ENGLISH, World, build_base, fingerprint
from cctuning.demo.steps import OF_TRAINER, options, write_rows
from cctuning.files import write_atomically
from cctuning.model.loading import Loaded, load
from cctuning.serving.answering import Answerer
from cctuning.training.run import train
from cctuning.workers import leave_with
from experiments.worlds.recipes import RECIPES, SETUPS

FORMAT = 5  # part of every key: raise it when a record of the same options would differ
Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What to train and what to score.

    Attributes:
        base: seed of world and base. recipe: its name, or `base` for the base itself. settings: learning_rate and
            whatever else differs from the recipe. split: `dev` or `test`.
    """

    setup: str
    base: int
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str = "dev"

    def __hash__(self) -> int:
        return hash(json.dumps(asdict(self), sort_keys=True))

    @property
    def label(self) -> str:
        """For people."""
        shown = " ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.setup} base {self.base} {self.recipe} {shown} ({self.split})"


def run_cell(cell: Cell, folder: Path) -> Record:
    """Return the cell's record; compute it if `folder` does not hold it."""
    setup = SETUPS[cell.setup]
    world, config = setup.make(cell.base), setup.base(cell.base)
    place = folder / "cells" / f"{_key(cell, world, fingerprint(world, config))}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_suffix(".lock")):
        if not place.is_file():
            bases = folder / "bases"
            bases.mkdir(exist_ok=True)
            with _locked(bases / f"{fingerprint(world, config)}.lock"):
                base = build_base(world, bases, config, progress=False)
            started = time.time()
            with tempfile.TemporaryDirectory(prefix="worlds-") as scratch:
                record = _compute(cell, world, base, Path(scratch))
            write_atomically(place, json.dumps({"seconds": time.time() - started, **record}) + "\n")
        # Two recipes that come to the same options share a file, so the record is told whose it is.
        return json.loads(place.read_text(encoding="utf-8")) | {"cell": asdict(cell)}


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the file `place`, so that no two processes compute the same; a killed process lets go."""
    with place.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _key(cell: Cell, world: World, base: str) -> str:
    content: dict[str, Any] = {"format": FORMAT, "base": base, "split": cell.split}
    if cell.recipe != "base":
        recipe = RECIPES[cell.recipe]
        chosen = {**recipe.method, **cell.settings}
        _, connection, _ = options(Path("base"), Path("rows"), Path("run"), chosen, 0)
        connection = replace(connection, align_weight=connection.weight, align_loss=connection.loss)
        trainer = {name: value for name, value in chosen.items() if name in OF_TRAINER}
        content |= {"rows": recipe.rows(world), "connection": connection.to_dict(), "trainer": trainer}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _compute(cell: Cell, world: World, base: Path, scratch: Path) -> Record:
    if cell.recipe == "base":
        return {"right": {"student": _flags(load(str(base)), world, cell.split)}}
    recipe, run = RECIPES[cell.recipe], scratch / "run"
    data = write_rows(recipe.rows(world), scratch / "rows.jsonl")
    chosen, connection, args = options(base, data, run, {**recipe.method, **cell.settings}, 0)
    args.disable_tqdm = True
    log = train(chosen, connection, args).state.log_history
    loaded = load(str(run))
    flags = {"student": _flags(loaded, world, cell.split)}
    if loaded.connected is not None:
        flags["bypass"] = _flags(loaded, world, cell.split, bypass=True)
        flags["live"] = _flags(loaded, world, cell.split, live=True)
    return {"tokens": int(max(entry.get("num_tokens", 0) for entry in log)), "right": flags}


def _flags(loaded: Loaded, world: World, split: str, **how: bool) -> dict[str, str]:
    """`right` as a string of `1` and `0` for each language."""
    return {lang: "".join("01"[flag] for flag in flags) for lang, flags in right(loaded, world, split, **how).items()}


def right(loaded: Loaded, world: World, split: str, bypass: bool = False, live: bool = False) -> dict[str, list[bool]]:
    """Return for each language which questions of `split` are answered exactly right, greedily.

    Args:
        bypass: without the connection's transform. live: with the English question as reference.
    """
    # One token more than an answer has: a model that goes on after it has not answered.
    answerer = Answerer(loaded, chat=False, bypass=bypass, batch_size=256, max_new_tokens=world.answer_tokens + 1)
    flags = {}
    for lang in world.languages:
        items = world.items(lang, split)
        parallels: Any = [item.prompt_en for item in items] if live and lang != ENGLISH else None
        given = answerer([item.prompt for item in items], parallels, languages=[lang] * len(items))
        flags[lang] = [answer == item.answer for answer, item in zip(given, items, strict=True)]
    return flags


def share(record: Record, languages: Sequence[str] | None = None, way: str = "student") -> float:
    """% right, mean over languages (all but English, if not given).

    Args:
        way: `student` (as it runs), `bypass` (without W) or `live` (with the English question).
    """
    by = record["right"][way]
    flags = [by[lang] for lang in languages or [lang for lang in by if lang != ENGLISH]]
    return float(sum(100 * one.count("1") / len(one) for one in flags) / len(flags))


def run_cells(cells: Sequence[Cell], folder: Path, workers: int | None = None) -> list[Record]:
    """Return the cells' records in their order, computed by processes of one thread each (one per core).

    Raises:
        The first error of a cell, after the running ones have ended; what is finished is kept.
    """
    (folder / "log").mkdir(parents=True, exist_ok=True)
    records: dict[Cell, Record] = {}
    pool = ProcessPoolExecutor(
        workers or os.cpu_count(), get_context("spawn"), _worker, (str(folder / "log"), os.getpid())
    )
    unique = list(dict.fromkeys(cells))
    with pool, tqdm(total=len(unique), unit="cell", desc="Cells") as bar:
        futures = {pool.submit(run_cell, cell, folder): cell for cell in unique}
        try:
            for future in as_completed(futures):
                records[futures[future]] = future.result()
                bar.set_postfix_str(f"{futures[future].label}: {share(future.result()):.1f}")
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [records[cell] for cell in cells]


def _worker(log: str, parent: int) -> None:
    """One thread, no hub, and the libraries' output in a file."""
    leave_with(parent)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    handle = os.open(f"{log}/worker-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
