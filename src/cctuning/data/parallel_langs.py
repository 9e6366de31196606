"""Languages of parallel text: codes in file names and columns, which of a file's languages answer to a code, and which
of two columns is which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache

from babel.core import Locale, get_global

from cctuning.pairing import languages

CODE = r"[A-Za-z]{2,3}(?:[-_][A-Z][a-z]{3})?(?:[-_][A-Z]{2})?"
PAIR = re.compile(rf"(?<![A-Za-z])({CODE})[-_]({CODE})(?![A-Za-z])")
SAME = {"no": "nb"}  # a macrolanguage and the one that its texts are written in
CLEAR = 0.2  # how much likelier one column must be in a language than the other


@cache
def _names() -> dict[str, str]:
    """English names of languages, without case, to codes."""
    return {name.casefold(): code.replace("_", "-") for code, name in Locale("en").languages.items()}


@cache
def known(name: str) -> str | None:
    """The canonical code of a language, by any of its codes or its English name; None where it is no language."""
    if name.casefold() in _names():
        return _names()[name.casefold()]
    if not languages.is_code(name):
        return None
    code = code_of(name)
    first = languages.base(code)
    return code if first in Locale("en").languages or first in get_global("likely_subtags") else None


@cache
def code_of(code: str) -> str:
    """A code in BCP 47's form, without a script that goes without saying: `eng_Latn` is `en`, `zh-hant` `zh-Hant`."""
    first, *rest = languages.canonical(code).split("-")
    parts = [part.title() if len(part) == 4 and part.isalpha() else part.upper() for part in rest]
    likely = get_global("likely_subtags").get(first, "").split("_")[1:2]
    if parts[:1] == likely and first not in ("zh", "sr"):  # those two are written in two scripts: there it says a lot
        parts = parts[1:]
    return "-".join([first, *parts])


@cache
def _full(code: str) -> tuple[str, str]:
    """Language and script, the likely one where none is named: `zh-TW` is in `Hant`."""
    first, *rest = code.split("-")
    script = next((part for part in rest if len(part) == 4 and part.isalpha()), "")
    if not script:
        likely = get_global("likely_subtags")
        region = next((part for part in rest if len(part) == 2), "")
        script = (likely.get(f"{first}_{region}") or likely.get(first) or "__").split("_")[1]
    return SAME.get(first, first), script


def same(code: str, other: str) -> bool:
    """Whether they are one language in one script, whatever the region."""
    return _full(code) == _full(other)


def answering(wanted: str, codes: Collection[str]) -> list[str]:
    """The codes that a wanted one means: itself; else its language and script; else, if it names no script, its
    language. `zh-Hans` means `zh-CN` and never `zh-TW`, `no` means `nb-NO`."""
    if wanted in codes:
        return [wanted]
    first, script = _full(wanted)
    regions = [part for part in wanted.split("-")[1:] if len(part) == 2]
    found = [code for code in codes if _full(code) == (first, script)]
    alike = [code for code in found if not regions or regions[0] in code.split("-") or "-" not in code]
    if alike:
        return alike
    if script in wanted.split("-"):
        return found
    return found or [code for code in codes if _full(code)[0] == first]


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
        found = [languages.identify(languages.prose(text)) for text in texts]
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
    own, others = languages.expected_scripts(code), languages.expected_scripts(other)
    if own and others and not set(own) & set(others):
        from cctuning.pairing.text import scripts

        counts = scripts(text)
        return sum(counts[script] for script in own) / max(counts.total(), 1)
    text = languages.prose(text)
    if not languages.identifiable(code):
        return 1 - languages.confidence(text, other, code)[0] if languages.identifiable(other) else 0.5
    return languages.confidence(text, code, other)[0]
