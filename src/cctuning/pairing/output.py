"""Write the output of `cctuning pair`: a directory or a file that appears only when it is complete."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cctuning.errors import UserError
from cctuning.files import directory_atomically

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
    """A temporary directory that replaces `output`, or is removed if an exception is raised."""
    with directory_atomically(output) as folder:
        yield folder
        shutil.rmtree(output, ignore_errors=True)


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


def write_card(folder: Path, card: Any) -> None:
    """Write card.json."""
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
