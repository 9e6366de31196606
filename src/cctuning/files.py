"""Write files atomically and hash their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cctuning.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either its old content or all of the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, record: Any) -> None:
    """Write `record` as JSON, as `write_atomically` does."""
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write `rows` as JSON Lines, as `write_atomically` does."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_new_file(path: Path, option: str = "--output") -> None:
    """Raise `UserError` if `path` exists, or has no directory to be written to."""
    if path.exists():
        raise UserError(f"{option} {path}: exists already; name a new file.")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no directory {path.parent}; create it first.")
    partial = path.with_name(f".{path.name}.partial")
    try:  # before the work whose result it is to hold
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); name another place.") from error


def file_hash(path: Path) -> str:
    """`sha256:` and the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def make_parents(path: Path) -> None:
    """Make the directories that `path` is to lie in; `UserError` if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}: {error.filename}); name another place.") from error


@contextmanager
def directory_atomically(target: Path) -> Iterator[Path]:
    """Yield a new directory that becomes `target` when the body ends without an error, and is removed otherwise.

    If another process has made `target` meanwhile, its directory is kept.
    """
    make_parents(target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's own is 700
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
