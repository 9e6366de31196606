"""Errors a user can mend.

Floor 0: imported by every room, imports none. A `UserError` carries one line that says what is wrong, where, what was
expected and what to do next; the command line prints that line alone and exits with status 2. Everything else that is
raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(ValueError):
    """Bad input: the message is one line that names the place, the value, what was expected and the next step."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Collection[str], otherwise: str = "") -> str:
    """A hint for a person who mistyped `name`, starting with a space; `otherwise` where nothing is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else otherwise
