"""Collect everything that a machine without a network needs, in folders small enough to be copied one by one.

    python -m experiments.real.gpu.build OUT --wheels WHEELS [--accept gemma-3-270m] [--known RECORDS]

OUT gets `1`, `2`, …, each under `--limit` MiB: this checkout's code, the wheels of the folder WHEELS, the rows (of
general text the first thousand pairs a language), the base in pieces, the plan, and `start.sh`, which puts all of it
together there. Send them in any order into one folder, then run `bash start.sh SECONDS WORKERS RESULTS` in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.real.bases import BASES, fetched, ready, written_out
from experiments.real.gpu import plan
from experiments.real.gpu.carry import pack
from experiments.real.registry import SIB, world_of
from experiments.real.worlds import GENERAL, TATOEBA, TICO, data_folder

ROOT = Path(__file__).resolve().parents[3]
PIECE = 27 * 2**20


def build(
    target: Path, wheels: Path, accept: Sequence[str], limit: int, base: str, world: str, known: Path | None = None
) -> list[Path]:
    """The folders, in the order of sending."""
    with tempfile.TemporaryDirectory() as scratch:
        flat = Path(scratch)
        chosen = BASES[base]
        checkpoint = ready(chosen, world_of(world).texts(), accept)
        pack(checkpoint, written_out(chosen, accept), fetched(chosen, accept), flat / "base", PIECE)
        for path in (flat / "base").iterdir():
            path.rename(flat / f"base-{path.name}")
        (flat / "base").rmdir()
        _code(flat / "code.tar.gz")
        _rows(flat / "rows.tar")
        for wheel in wheels.glob("*.whl"):
            shutil.copy(wheel, flat / wheel.name)
        (flat / "plan.jsonl").write_text("".join(json.dumps(one) + "\n" for one in plan.lines()))
        shutil.copy(Path(__file__).with_name("start.sh"), flat / "start.sh")
        if known is not None:
            shutil.copy(known, flat / f"known{''.join(known.suffixes)}")
        return _distributed(flat, target, limit)


def _code(target: Path) -> None:
    with tarfile.open(target, "w:gz") as archive:
        for name in ("src", "experiments"):
            archive.add(ROOT / name, name, filter=lambda one: None if "__pycache__" in one.name else one)


def _rows(target: Path) -> None:
    """The files that the world reads."""
    folder = data_folder()
    with tarfile.open(target, "w") as archive, tempfile.TemporaryDirectory() as scratch:
        for lang in SIB:
            name = f"benchmarks/sib200/{lang}.jsonl.gz"
            archive.add(folder / name, name)
        for place, files in (("parallel/tatoeba", TATOEBA), ("parallel/tico19", TICO)):
            for lang in SIB:
                if lang in files:
                    name = f"{place}/{files[lang]}.jsonl.gz"
                    with gzip.open(folder / name, "rt", encoding="utf-8") as file:
                        lines = [text for text, _ in zip(file, range(GENERAL), strict=False)]
                    short = Path(scratch) / "rows.gz"
                    with gzip.open(short, "wt", encoding="utf-8") as file:
                        file.writelines(lines)
                    archive.add(short, name)


def _distributed(flat: Path, target: Path, limit: int) -> list[Path]:
    """Distribute the files: largest first, each into the first folder with room."""
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
    parser.add_argument("--limit", type=float, default=57, help="MiB of a folder at most")
    parser.add_argument("--known", type=Path, help="records whose cells are not run again")
    parser.add_argument("--base", default=plan.BASE)
    parser.add_argument("--world", default=plan.WORLD)
    said = parser.parse_args(argv)
    limit = int(said.limit * 2**20)
    for folder in build(said.target, said.wheels, said.accept, limit, said.base, said.world, said.known):
        size = sum(_size(path) for path in folder.iterdir()) / 2**20
        print(f"{folder}: {size:.1f} MiB, {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
