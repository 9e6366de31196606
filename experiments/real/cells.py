"""Run one cell: a base, a world, a recipe with its setting and a seed give a record, stored under a hash of all of it.

A record says for `dev` and `test`, by language, which items were answered right, so that every figure is computed from
records and nothing is scored twice. Choices are made on `dev` (search.py) and figures reported on `test` (figures.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import resource
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from cctuning.errors import UserError, nearest
from cctuning.files import write_atomically
from experiments.real.bases import BASES, fingerprint, ready
from experiments.real.recipes import Job, Setting
from experiments.real.registry import recipe_of, world_of
from experiments.real.scoring import Encoded, encode, exact, right, written
from experiments.real.worlds import Text, version_of

FORMAT = 2  # part of every key: raise it when a record of the same cell would differ


@dataclass(frozen=True)
class Cell:
    """What to train and score."""

    base: str
    world: str
    recipe: str
    setting: Setting = Setting()
    seed: int = 0

    @property
    def label(self) -> str:
        """The cell in words: what differs from the defaults."""
        said = {**_differs(self.setting, Setting()), **_differs(self.setting.text, Text())}
        said.pop("text", None)
        shown = " ".join(f"{name}={value}" for name, value in said.items())
        return f"{self.base} {self.world} {self.recipe} seed {self.seed} {shown}".strip()


def _differs(one: Any, other: Any) -> dict[str, Any]:
    return {
        field.name: getattr(one, field.name)
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }


def cell_of(told: Mapping[str, Any]) -> Cell:
    """Return the cell of a record or of a plan's line.

    Raises:
        UserError: an unknown option.
    """
    setting = dict(told.get("setting") or {})
    text: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in setting.pop("text", {}).items()
    }
    if setting.get("layers") is not None:
        setting["layers"] = tuple(setting["layers"])
    setting["extra"] = tuple((name, value) for name, value in setting.get("extra", ()))
    for given, kind in ((setting, Setting), (text, Text)):
        known = [field.name for field in dataclasses.fields(kind)]
        for name in given:
            if name not in known:
                raise UserError(f"setting: unknown option {name!r}.{nearest(name, known)}")
    return Cell(
        told["base"], told["world"], told["recipe"], Setting(text=Text(**text), **setting), int(told.get("seed", 0))
    )


def told(cell: Cell) -> dict[str, Any]:
    """Return the cell as plain JSON types."""
    return dict(json.loads(json.dumps(asdict(cell))))


def key(cell: Cell, base: str, data: str) -> str:
    """Return the hash of everything that decides the record.

    Args:
        base: fingerprint of the checkpoint. data: version of the world's rows.
    """
    content = {"format": FORMAT, "cell": told(cell), "base": base, "data": data}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


class Lab:
    """Runs cells and stores their records; keeps in memory what it has read.

    Args:
        folder: of the records. accept: bases whose terms are accepted. given: checkpoints that are there already, by
            base and world (`BASE WORLD`): a machine without a network is given them. packs: where language packs are
            kept for other cells; None: they are not.
    """

    def __init__(
        self,
        folder: Path,
        accept: Iterable[str] = (),
        given: Mapping[str, Path] | None = None,
        packs: Path | None = None,
    ) -> None:
        self.packs = packs
        self.folder, self.accept, self._given = folder, list(accept), dict(given or {})
        self._known: dict[tuple[str, str], tuple[Path, str, str]] = {}

    def known(self, base: str, world: str) -> tuple[Path, str, str]:
        """The checkpoint cut to the world's texts, its fingerprint, and the version of the rows."""
        if (base, world) not in self._known:
            if base not in BASES:
                raise UserError(f"base: {base!r} is not one of {', '.join(BASES)}.{nearest(base, BASES)}")
            rows = world_of(world)
            place = self._given.get(f"{base} {world}") or ready(BASES[base], rows.texts(), self.accept)
            self._known[base, world] = (place, fingerprint(place), version_of(rows))
        return self._known[base, world]

    def place(self, cell: Cell) -> Path:
        """File of the cell's record."""
        _, base, data = self.known(cell.base, cell.world)
        return self.folder / f"{key(cell, base, data)}.json"

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record, or None."""
        place = self.place(cell)
        return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's record; computed if there is none."""
        kept = self.record(cell)
        if kept is not None:
            return kept
        checkpoint, base, data = self.known(cell.base, cell.world)
        record = {"cell": told(cell), "base": base, "data": data, "machine": machine()}
        record |= compute(cell, checkpoint, self.packs)
        self.keep(cell, record)
        return record

    def keep(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Write a record atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.place(cell), json.dumps(record) + "\n")

    def take(self, record: Mapping[str, Any]) -> Cell:
        """Store a record made on another machine.

        Raises:
            UserError: it was made with another version of the rows, or of the base.
        """
        cell = cell_of(record["cell"])
        _, base, data = self.known(cell.base, cell.world)
        for name, own, here in (("rows of the world", record["data"], data), ("base", record["base"], base)):
            if own != here:
                raise UserError(
                    f"{cell.label}: made with another version of the {name} ({own}; here {here}): it cannot be "
                    "compared with records made here; run it again."
                )
        self.keep(cell, record)
        return cell


def amp() -> torch.dtype | None:
    """Return bfloat16 if the machine is faster with it (a GPU, or a CPU with AMX or AVX512-BF16), else None."""
    if torch.cuda.is_available():
        return torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else None


def machine() -> dict[str, Any]:
    """Return device and versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def compute(cell: Cell, checkpoint: Path, packs: Path | None = None) -> dict[str, Any]:
    """Train and score."""
    started, dtype = time.time(), amp()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    set_seed(cell.seed)
    world, chat = world_of(cell.world), BASES[cell.base].chat
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory(prefix="real-") as scratch:
        job = Job(model, tokenizer, world, cell.setting, cell.seed, Path(scratch), chat, dtype, packs)
        tuned = recipe_of(cell.recipe)(job).eval()
        trained = time.time()
        flags = score(tuned, tokenizer, cell, dtype)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _resident()
    return {
        "right": flags,
        "noted": job.noted,
        "seconds": {"training": trained - started, "scoring": time.time() - trained},
        "memory_mb": round(memory),
    }


def score(model: Any, tokenizer: Any, cell: Cell, dtype: torch.dtype | None) -> dict[str, dict[str, str]]:
    """Return split -> language -> a `1` or `0` for each item; of a world that writes, also of its test items' answers:
    `exact` and `language` (`scoring.exact`)."""
    world, chat = world_of(cell.world), BASES[cell.base].chat
    found: dict[str, dict[str, str]] = {"dev": {}, "test": {}}
    more: dict[str, dict[str, str]] = {}
    for split, by_language in found.items():
        for lang in world.languages:
            items = world.items(split, lang)
            if hasattr(model, "intervention"):
                model.intervention.language = lang
            place = (cell.base, cell.world, split, lang)
            if place not in _ENCODED:
                _ENCODED[place] = encode(tokenizer, items, chat)
            by_language[lang] = right(
                model, tokenizer, items, chat=chat, first_token=world.first_token, amp=dtype, encoded=_ENCODED[place]
            )
            if split == "test" and world.writes and not hasattr(model, "intervention"):
                for kind, flags in exact(written(model, tokenizer, _ENCODED[place], dtype), items).items():
                    more.setdefault(kind, {})[lang] = flags
    return found | more


_ENCODED: dict[tuple[str, str, str, str], list[Encoded]] = {}  # a worker scores the same items cell after cell


def _resident() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
