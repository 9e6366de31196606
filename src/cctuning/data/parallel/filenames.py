"""Languages in file names: the sides of a corpus (`corpus.sw`, `corpus.en`), the pair of `WikiMatrix.en-sw.tsv`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from babel.core import Locale

from cctuning.data.readers import SUFFIXES, local_path
from cctuning.data.text_files import uncompressed_name
from cctuning.languages import base, canonical_or_none, same

CODE = r"[A-Za-z]{2,3}(?:[-_][A-Z][a-z]{3})?(?:[-_][A-Z]{2})?"
PAIR = re.compile(rf"(?<![A-Za-z])({CODE})(?=[-_]({CODE})(?![A-Za-z]))")  # each code may be in two pairs
TABLES = (*SUFFIXES, ".tmx", ".tbx", ".zip")


@cache
def known_in_name(part: str) -> str | None:
    """The language that a part of a file's name names, or None.

    Nearly every three letters are the code of some language (`txt`, `dev`), so a code without a script must be one of
    a language that CLDR names.
    """
    code = canonical_or_none(part) if re.fullmatch(CODE, part) else None
    return code if code and ("_" in part or base(code) in Locale("en").languages) else None


def in_name(stem: str, language: str) -> tuple[str, str] | None:
    """The two languages in a file's name, in order: `WikiMatrix.en-sw` has `en` and `sw`.

    The last pair with the reference language, or else the last: what stands before may be a corpus (`JW-en-sw`).
    """
    pairs, end = list[tuple[str, str]](), 0
    for match in PAIR.finditer(stem):
        one, other = map(known_in_name, match.groups())
        if one and other and match.end(2) > end:  # else it is the language and region of the code before
            pairs.append((one, other))
            end = match.end(2)
    holding = [pair for pair in pairs if any(same(code, language) for code in pair)]
    return next(reversed(holding or pairs), None)


def named_by(stem: str, language: str) -> str | None:
    """The language other than the reference language in a file's name: `en-sw`, `fra`, `sw.train`."""
    pair = in_name(stem, language)
    if pair is not None:
        others = [code for code in pair if not same(code, language)]
        return others[0] if len(others) == 1 else None
    code = known_in_name(stem.split(".")[0])
    return code if code and not same(code, language) else None


def suffix_of(name: str) -> str:
    """The suffix of the format, without that of the compression."""
    return Path(uncompressed_name(name)).suffix.lower()


def is_tar(name: str) -> bool:
    return suffix_of(name) in (".tar", ".tgz", ".tbz2", ".txz")


def stem_of(name: str) -> str:
    """The name without the suffixes of format and compression; the language of a plain text file stays."""
    name = uncompressed_name(name)
    return name[: -len(suffix_of(name))] if suffix_of(name) in (*TABLES, ".txt") else name


def languages_in(name: str) -> list[tuple[int, list[str], str]]:
    """The parts of a file's name (between dots) that are languages, last first: position, the other parts, code."""
    parts = uncompressed_name(name).split(".")
    found = []
    for place in reversed(range(len(parts))):
        code = known_in_name(parts[place]) if len(parts) > 1 else None
        if code:
            found.append((place, parts[:place] + parts[place + 1 :], code))
    return found


def sides_among(names: Iterable[str], language: str) -> list[tuple[str, str, str]]:
    """Text, reference and the text's language of each pair of file names or paths that differ only in a language."""
    groups: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        for place, rest, code in languages_in(Path(name).name):
            groups[(place, *rest)].append((name, code))
    found: dict[str, tuple[str, str, str]] = {}
    for group in groups.values():
        reference = next((name for name, code in group if same(code, language)), None)
        for name, code in group:
            if reference is not None and not same(code, language):
                found.setdefault(name, (name, reference, code))
    return list(found.values())


def pair_of_paths(paths: list[Any], language: str) -> list[Any]:
    """Paths from a command line, with `FILE.sw FILE.en` joined into one source."""
    joined: list[Any] = []
    for path in paths:
        before: Any = joined[-1] if joined else None
        both = [before, path] if isinstance(before, str) and isinstance(path, str) else []
        plain = both and all(suffix_of(one) not in TABLES and local_path(one).is_file() for one in both)
        if plain and is_in(before, language) != is_in(path, language):
            text, reference = (path, before) if is_in(before, language) else (before, path)
            joined[-1] = {"path": text, "reference": reference}
        else:
            joined.append(path)
    return joined


def is_in(path: str, language: str) -> bool:
    """Whether a file's name says that it is in this language."""
    return any(same(code, language) for _, _, code in languages_in(Path(path).name)[:1])
