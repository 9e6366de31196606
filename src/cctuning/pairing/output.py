"""Write the output directory under a temporary name and rename it when it is complete.

An interrupted run removes the temporary directory; one that is killed leaves it to the next run with the same output.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cctuning.errors import UserError

CARD, TABLE, ROWS, REJECTS = "card.json", "card.md", "rows.jsonl", "rejects.jsonl"


def check(output: Path, overwrite: bool) -> None:
    """Check the output before any work is done."""
    if not output.name:
        raise UserError("--output: missing; name a new directory.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / CARD).is_file():
            raise UserError(
                f"--output {output}: exists and was not written by `cctuning pair`; name another directory."
            )
        if not overwrite:
            raise UserError(f"--output {output}: holds a finished run; name another directory, or add --overwrite.")


@contextmanager
def draft(output: Path) -> Iterator[Path]:
    """A temporary directory that becomes `output`, or is removed if an exception is raised."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.draft")
    folder.mkdir(exist_ok=True)
    with (output.with_name(f".{output.name}.lock")).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--output {output}: another run is writing there; wait for it, or name another."
            ) from None
        try:
            shutil.rmtree(folder)
            folder.mkdir()
            yield folder
            old = output.with_name(f".{output.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if output.exists():
                output.rename(old)
            folder.rename(output)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


@contextmanager
def new_file(output: str, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes a row to a new file, which appears only when it is complete; .gz is compressed."""
    place = Path(output).expanduser()
    if place.exists() and not overwrite:
        raise UserError(f"--output {place}: exists; name another file, or add --overwrite.")
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.draft")
    opened: Callable[..., Any] = gzip.open if place.suffix == ".gz" else open
    try:
        with opened(partial, "wb") as file:
            yield lambda row: file.write(line(row))
        partial.rename(place)
    finally:
        partial.unlink(missing_ok=True)


def line(value: Any) -> bytes:
    """A line of JSON. Dates, decimals and bytes, which Parquet has, are written as text."""
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"


def line_at(file: IO[bytes], offset: int) -> bytes:
    """The line that begins at `offset`."""
    file.seek(offset)
    return file.readline()


def json_at(file: IO[bytes], offset: int) -> Any:
    """The JSON line that begins at `offset`."""
    return json.loads(line_at(file, offset))


def write_card(folder: Path, card: Any) -> None:
    """Write card.json."""
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
