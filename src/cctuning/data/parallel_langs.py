"""Languages of parallel text: codes in file names and columns, which of a file's languages answer to a code, and which
of two columns is which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache

from cctuning import identify
from cctuning.languages import base, canonical, is_code, matches, same, tag

CODE = r"[A-Za-z]{2,3}(?:[-_][A-Z][a-z]{3})?(?:[-_][A-Z]{2})?"
PAIR = re.compile(rf"(?<![A-Za-z])({CODE})[-_]({CODE})(?![A-Za-z])")
CLEAR = 0.2  # how much likelier one column must be in a language than the other


@cache
def known(name: str) -> str | None:
    """The canonical code of a language, by any of its codes or its English name; None where it is no language."""
    return canonical(name) if is_code(name) else None


def code_of(code: str) -> str:
    """The canonical code, or the code itself where it is no language's: a memory may hold any."""
    return known(code) or code


def answering(wanted: str, codes: Collection[str]) -> list[str]:
    """The codes that a wanted one means: itself; else its language and script; else, if it names no script, its
    language. `zh-Hans` means `zh-CN` and never `zh-TW`, `no` means `nb-NO`."""
    if wanted in codes:
        return [wanted]
    found = [code for code in codes if is_code(code) and matches(wanted, code)]
    if found or tag(wanted).script != tag(base(wanted)).script:  # it names a script of its own
        return found
    return [code for code in codes if is_code(code) and base(code) == base(wanted)]


def in_name(stem: str) -> tuple[str, str] | None:
    """The two languages that a file's name joins, in its order: `WikiMatrix.en-sw` has `en` and `sw`."""
    for match in PAIR.finditer(stem):
        one, other = known(match[1]), known(match[2])
        if one and other:
            return one, other
    return None


def named_by(stem: str, language: str) -> str | None:
    """The language beside the reference language that a file's name gives: `en-sw`, `fra`, `sw.train`."""
    pair = in_name(stem)
    if pair is not None:
        others = [code for code in pair if not same(code, language)]
        return others[0] if len(others) == 1 else None
    first = stem.split(".")[0]
    code = known(first) if re.fullmatch(CODE, first) else None
    return code if code and not same(code, language) else None


def side_of_reference(texts: Sequence[str], language: str, other: str | None) -> tuple[int, str] | None:
    """Which of two columns is in the reference language, and the language of the other.

    Args:
        texts: a sample of each column.
        language: the reference language.
        other: what the other column is in, where it is known.

    Returns:
        None where it cannot be told.
    """
    if other is None:
        found = [identify.identify(identify.prose(text)) for text in texts]
        here = [side for side, code in enumerate(found) if code and same(code, language)]
        if len(here) != 1 or found[1 - here[0]] is None:
            return None
        return here[0], str(found[1 - here[0]])
    shares = [likeness(text, language, other) for text in texts]
    if abs(shares[0] - shares[1]) < CLEAR:
        return None
    return (0 if shares[0] > shares[1] else 1), other


def likeness(text: str, code: str, other: str) -> float:
    """How likely a text is in `code` rather than in `other`, 0 to 1: by script where they differ, else by lingua."""
    own, others = identify.expected_scripts(code), identify.expected_scripts(other)
    if own and others and not set(own) & set(others):
        counts = identify.scripts(text)
        return sum(counts[script] for script in own) / max(counts.total(), 1)
    text = identify.prose(text)
    if not identify.identifiable(code):
        return 1 - identify.confidence(text, other, code)[0] if identify.identifiable(other) else 0.5
    return identify.confidence(text, code, other)[0]
