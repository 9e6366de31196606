"""Files that are the two sides of one corpus, by their names: `corpus.sw` and `corpus.en`, `swh_Latn.dev` and
`eng_Latn.dev`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cctuning.data.compressed import bare
from cctuning.data.parallel_langs import known_in_name, same
from cctuning.data.rows import SUFFIXES
from cctuning.errors import UserError

TABLES = (*SUFFIXES, ".tmx", ".tbx", ".zip")


def local_path(path: str) -> Path:
    """With environment variables and `~` expanded."""
    return Path(os.path.expandvars(path)).expanduser()


def suffix_of(name: str) -> str:
    """The ending that tells the format, before that of the compression."""
    return Path(bare(name)).suffix.lower()


def stem_of(name: str) -> str:
    """The name without the endings of format and compression; the language of a plain file stays."""
    name = bare(name)
    return name[: -len(suffix_of(name))] if suffix_of(name) in (*TABLES, ".txt") else name


def languages_in(name: str) -> list[tuple[int, list[str], str]]:
    """The parts of a file's name (between dots) that are languages, the last first: place, the other parts, code."""
    parts = bare(name).split(".")
    found = []
    for place in reversed(range(len(parts))):
        code = known_in_name(parts[place]) if len(parts) > 1 else None
        if code:
            found.append((place, parts[:place] + parts[place + 1 :], code))
    return found


def other_side(path: Path, language: str) -> tuple[Path, Path, str] | None:
    """The two files, and the language, of a pair like `corpus.sw` and `corpus.en`, of which one is named."""
    for place, rest, code in languages_in(path.name):
        own = same(code, language)
        found = []
        for file in sorted(path.parent.iterdir()):
            for other in languages_in(file.name):
                if other[:2] == (place, rest) and same(other[2], language) != own:
                    found.append((file, other[2]))
        if own and len(found) > 1:
            names = ", ".join(file.name for file, _ in found)
            raise UserError(f"{path}: more than one file lies beside it: {names}; name one of them.")
        if found:
            return (found[0][0], path, found[0][1]) if own else (path, found[0][0], code)
    return None


def pair_of_paths(paths: list[Any], language: str) -> list[Any]:
    """Paths as a command line gives them: `FILE.sw FILE.en` is one source and not two."""
    joined: list[Any] = []
    for path in paths:
        before = joined[-1] if joined else None
        if isinstance(before, str) and isinstance(path, str) and _are_sides(before, path, language):
            text, reference = (path, before) if is_in(before, language) else (before, path)
            joined[-1] = {"path": text, "reference": reference}
        else:
            joined.append(path)
    return joined


def is_in(path: str, language: str) -> bool:
    """Whether the name says that a file is in this language."""
    return any(same(code, language) for _, _, code in languages_in(Path(path).name)[:1])


def _are_sides(one: str, other: str, language: str) -> bool:
    plain = all(suffix_of(path) not in TABLES and local_path(path).is_file() for path in (one, other))
    return plain and is_in(one, language) != is_in(other, language)
