"""Collect everything that a machine without a network needs, in folders small enough to be copied one by one.

    python -m experiments.real.gpu.build OUT --wheels WHEELS [--accept gemma-3-270m] [--known RECORDS]

OUT gets `1`, `2`, …, each under `--limit` MiB: this checkout's code, the wheels of the folder WHEELS, the rows that
the plan's worlds read, its bases, the plan, and `start.sh`, which puts all of it together there; a larger file is cut.
Send them in any order into one folder, then run `bash start.sh SECONDS WORKERS RESULTS` in it. Parallel text that a
cell checks or chooses by a command of the package is checked and chosen here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from experiments.real.bases import BASES
from experiments.real.cells import cell_of
from experiments.real.gpu import plan
from experiments.real.gpu.carry import pack
from experiments.real.recipes import parallel_text
from experiments.real.registry import world_of
from experiments.real.worlds import data_folder

ROOT = Path(__file__).resolve().parents[3]
PIECE = 27 * 2**20
ROWS = ("benchmarks/sib200", "benchmarks/bmlama17", "parallel/tatoeba", "parallel/tico19", "sft/alpaca")


def build(target: Path, wheels: Path, accept: Sequence[str], limit: int, known: Path | None = None) -> list[Path]:
    """The folders, in the order of sending."""
    with tempfile.TemporaryDirectory() as scratch:
        flat = Path(scratch)
        os.environ["CC_TUNING_TEXT"] = str(flat / "text")
        lines = list(plan.lines())
        for base in dict.fromkeys(line["cell"]["base"] for line in lines):
            worlds = dict.fromkeys(line["cell"]["world"] for line in lines if line["cell"]["base"] == base)
            pack(BASES[base], list(worlds), flat, PIECE, accept)
        _text(lines, flat)
        _code(flat / "code.tar.gz")
        _rows(flat / "rows.tar")
        for wheel in wheels.glob("*.whl"):
            shutil.copy(wheel, flat / wheel.name)
        (flat / "plan.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        shutil.copy(Path(__file__).with_name("start.sh"), flat / "start.sh")
        if known is not None:
            shutil.copy(known, flat / f"known{''.join(known.suffixes)}")
        return _distributed(flat, target, limit)


def _text(lines: Sequence[dict[str, Any]], flat: Path) -> None:
    """Pack the translated, checked and chosen text of the plan's cells, as text.py keeps it."""
    for cell in (cell_of(line["cell"]) for line in lines):
        if cell.setting.check or cell.setting.choice:
            parallel_text(world_of(cell.world), cell.setting, cell.seed)
    (flat / "text").mkdir(exist_ok=True)
    with tarfile.open(flat / "text.tar.gz", "w:gz") as archive:
        archive.add(flat / "text", "text")
    shutil.rmtree(flat / "text")


def _code(target: Path) -> None:
    with tarfile.open(target, "w:gz") as archive:
        for name in ("src", "experiments", "bench"):
            archive.add(ROOT / name, name, filter=lambda one: None if "__pycache__" in one.name else one)


def _rows(target: Path) -> None:
    """The files that the worlds read."""
    with tarfile.open(target, "w") as archive:
        for name in ROWS:
            archive.add(data_folder() / name, name)


def _distributed(flat: Path, target: Path, limit: int) -> list[Path]:
    """Cut files above the limit; then put each, largest first, into the first folder with room."""
    for path in [path for path in flat.iterdir() if _size(path) > limit]:
        with path.open("rb") as file:
            for number, piece in enumerate(iter(partial(file.read, limit), b"")):
                path.with_name(f"{path.name}.piece{number:03d}").write_bytes(piece)
        path.unlink()
    folders: list[list[Path]] = []
    for path in sorted(flat.iterdir(), key=lambda path: -path.stat().st_size):
        room = (one for one in folders if sum(map(_size, one)) + _size(path) <= limit)
        chosen = next(room, None)
        if chosen is None:
            chosen = []
            folders.append(chosen)
        chosen.append(path)
    found = []
    for number, paths in enumerate(folders, 1):
        folder = target / str(number)
        folder.mkdir(parents=True)
        for path in paths:
            shutil.move(path, folder / path.name)
        found.append(folder)
    return found


def _size(path: Path) -> int:
    return path.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--accept", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=54, help="MiB of a folder at most")
    parser.add_argument("--known", type=Path, help="records whose cells are not run again")
    said = parser.parse_args(argv)
    limit = int(said.limit * 2**20)
    try:
        folders = build(said.target, said.wheels, said.accept, limit, said.known)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    for folder in folders:
        size = sum(_size(path) for path in folder.iterdir()) / 2**20
        print(f"{folder}: {size:.1f} MiB, {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
