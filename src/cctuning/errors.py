"""Errors that the user can correct.

The message of a `UserError` is one line: what is wrong, where, what was expected and what to do. The command line
prints it and exits with status 2. Any function that takes options, files or models may raise one. Any other exception
is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path


class UserError(ValueError):
    """Bad input or options; line breaks in the message become spaces."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Collection[str], otherwise: str = "") -> str:
    """' Did you mean ...?' with the known name closest to `name`, or `otherwise` where none is close."""
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else otherwise


def nearest_path(path: Path) -> str:
    """As `nearest`, for a path among those beside it."""
    return nearest(str(path), [str(one) for one in path.parent.iterdir()]) if path.parent.is_dir() else ""
