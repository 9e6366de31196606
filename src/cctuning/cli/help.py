"""Help of a verb with hundreds of options: in groups, ours first, each with its default."""

from __future__ import annotations

import shutil
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any, get_origin, get_type_hints

from cctuning.settings import alternatives

Group = tuple[str, str, Callable[[str], bool]]  # name, heading, whether an option is in it


def wanted(argv: Sequence[str]) -> str | None:
    """GROUP of `--help GROUP`; empty for `--help` alone; None without `--help`."""
    for place, argument in enumerate(argv):
        if argument in ("-h", "--help"):
            rest = argv[place + 1 : place + 2]
            return rest[0] if rest and not rest[0].startswith("-") else ""
    return None


def text(usage: str, description: str, kinds: Sequence[type], groups: Sequence[Group], which: str) -> str:
    """The help text.

    Args:
        kinds: dataclasses of options, one option per field.
        groups: an option is in the first group that has it.
        which: name of a group, `all`, or empty for all but the last group.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    left = {option.name: option for kind in kinds for option in fields(kind) if option.init}
    width = min(shutil.get_terminal_size().columns, 110)
    lines = [usage, "", *textwrap.wrap(description, width), ""]
    for name, heading, has in groups:
        own = [left.pop(option) for option in list(left) if has(option)]
        if which in (name, "all") or (not which and name != groups[-1][0]):
            lines += [f"{heading}  (--help {name})", ""]
            lines += [line for option in own for line in _option(option, hints[option.name], width)]
            lines.append("")
    names = ", ".join(name for name, _, _ in groups)
    lines.append(f"--help GROUP shows one group ({names}), --help all every option.")
    return "\n".join(lines)


def _option(option: Field[Any], hint: Any, width: int) -> list[str]:
    default = option.default_factory() if option.default_factory is not MISSING else option.default
    default = default.value if isinstance(default, Enum) else default
    takes = "|".join(map(str, option.metadata["choices"])) if "choices" in option.metadata else _kind(hint)
    shown = "unset" if default in (None, "", []) else str(default).lower() if isinstance(default, bool) else default
    body = " ".join(f"{option.metadata.get('help', '')} Default: {shown}.".split())
    return [
        f"  --{option.name} {takes}",
        *textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _kind(hint: Any) -> str:
    named: Mapping[Any, str] = {bool: "true|false", int: "N", float: "X", str: "TEXT", dict: "JSON", list: "TEXT …"}
    found = [named.get(get_origin(part) or part, "TEXT") for part in alternatives(hint) if part is not types.NoneType]
    return found[0] if found else "TEXT"
