"""Languages of parallel text: codes in file names and columns, which of a file's languages answer to a code, and which
of two columns is which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache

from babel.core import Locale
from lingua import LanguageDetector, LanguageDetectorBuilder

from cctuning.identify import SURE, confidence, expected_scripts, identifiable, prose, scripts
from cctuning.languages import base, canonical, is_code, matches, same

CODE = r"[A-Za-z]{2,3}(?:[-_][A-Z][a-z]{3})?(?:[-_][A-Z]{2})?"
PAIR = re.compile(rf"(?<![A-Za-z])({CODE})[-_]({CODE})(?![A-Za-z])")
CLEAR = 0.2  # how much likelier one column must be in a language than the other


@cache
def known(name: str) -> str | None:
    """The canonical code of a language, by any of its codes or its English name; None where it is no language."""
    return canonical(name) if is_code(name) else None


@cache
def known_in_name(part: str) -> str | None:
    """A part of a file's name as a language. Nearly every three letters are some language's code (`txt`, `dev`), so
    that one without a script must be a language that CLDR names."""
    code = known(part) if re.fullmatch(CODE, part) else None
    return code if code and ("_" in part or base(code) in Locale("en").languages) else None


def code_of(code: str) -> str:
    """The canonical code, or the code itself where it is no language's: a memory may hold any."""
    return known(code) or code


def answering(wanted: str, codes: Collection[str]) -> list[str]:
    """The codes that a wanted one means: itself; else its language and script; else, if it names no script, its
    language. `zh-Hans` means `zh-CN` and never `zh-TW`, `no` means `nb-NO`."""
    if wanted in codes:
        return [wanted]
    found = [code for code in codes if is_code(code) and matches(wanted, code)]
    if found or any(len(part) == 4 and part.isalpha() for part in re.split("[-_]", wanted)[1:]):  # it names a script
        return found
    return [code for code in codes if is_code(code) and base(code) == base(wanted)]


def in_name(stem: str) -> tuple[str, str] | None:
    """The two languages that a file's name joins, in its order: `WikiMatrix.en-sw` has `en` and `sw`."""
    for match in PAIR.finditer(stem):
        one, other = known_in_name(match[1]), known_in_name(match[2])
        if one and other:
            return one, other
    return None


def named_by(stem: str, language: str) -> str | None:
    """The language beside the reference language that a file's name gives: `en-sw`, `fra`, `sw.train`."""
    pair = in_name(stem)
    if pair is not None:
        others = [code for code in pair if not same(code, language)]
        return others[0] if len(others) == 1 else None
    code = known_in_name(stem.split(".")[0])
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
        found = [identify(text) for text in texts]
        here = [side for side, code in enumerate(found) if code and same(code, language)]
        if len(here) != 1 or found[1 - here[0]] is None:
            return None
        return here[0], str(found[1 - here[0]])
    shares = [likeness(text, language, other) for text in texts]
    if abs(shares[0] - shares[1]) < CLEAR:
        return None
    return (0 if shares[0] > shares[1] else 1), other


def scripts_apart(code: str, other: str) -> bool:
    """Whether two languages are told apart by their letters."""
    own, others = expected_scripts(code), expected_scripts(other)
    return bool(own and others) and not set(own) & set(others)


def likeness(text: str, code: str, other: str) -> float:
    """How likely a text is in `code` rather than in `other`, 0 to 1: by script where they differ, else by lingua."""
    text = text.encode(errors="ignore").decode()  # bytes that are no UTF-8 are reported with their line, not here
    if scripts_apart(code, other):
        counts = scripts(text)
        return sum(counts[script] for script in expected_scripts(code)) / max(counts.total(), 1)
    text = prose(text)
    if not identifiable(code):
        return 1 - confidence(text, other, code)[0] if identifiable(other) else 0.5
    return confidence(text, code, other)[0]


@cache
def _any() -> LanguageDetector:
    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()


def identify(text: str) -> str | None:
    """The language that some sentences are in, of all that lingua knows; None where it is not sure."""
    text = prose(text.encode(errors="ignore").decode())
    found = _any().compute_language_confidence_values(text)
    sure = bool(found) and found[0].value >= SURE
    return known(found[0].language.iso_code_639_1.name) if sure else None
