"""Which language and script a text is in, asked of lingua and of Unicode, with the doubts of short texts in mind.

lingua's models of all its 75 languages take 1.2 GiB, are slow, and less accurate on short texts. So a text is compared
only with its own language, the reference language and the widespread languages of the same script, in which most wrong
texts are; another script is found without a model. lingua's low-accuracy mode decides most texts in a tenth of the
time, and the full models the rest. Very similar languages (Indonesian and Malay; Bosnian, Croatian and Serbian) count
as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from babel import Locale

from cctuning.extras import require
from cctuning.languages import base, canonical_or_none, parse

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector

# Languages that a wrong text is likely to be in: the most widespread ones of scripts that several languages share.
WIDESPREAD = "en es fr de pt it nl pl id vi tr sw ru uk bg ar fa ur hi mr zh ja ko"
ALIKE = ("id ms", "hr bs sr", "nb nn da no", "cs sk", "zu xh", "es ca", "st tn")
ALIKE_SETS = [frozenset(group.split()) for group in ALIKE]
# First words of the names of a script's characters in Unicode, where they are not the script's English name
SCRIPTS = {"Hans": "CJK", "Hant": "CJK BOPOMOFO", "Hani": "CJK", "Jpan": "HIRAGANA KATAKANA CJK", "Kore": "HANGUL CJK"}
SCRIPTS |= {"Beng": "BENGALI", "Orya": "ORIYA", "Mtei": "MEETEI", "Aran": "ARABIC", "Latf": "LATIN", "Latg": "LATIN"}
SCRIPTS |= {"Cans": "CANADIAN", "Nkoo": "NKO", "Lana": "TAI", "Lisu": "LISU", "Mand": "MANDAIC", "Plrd": "MIAO"}
# Second scripts of languages, besides the one that CLDR expects; `sr-Latn` names one.
ALSO = {"sr": "Latn", "bs": "Cyrl", "az": "Cyrl", "uz": "Cyrl", "kk": "Latn", "mn": "Mong", "pa": "Arab", "ku": "Arab"}
IDENTIFIED = 200  # texts, spread over a file, from which its language is identified
TOGETHER = 10  # of them that are identified as one text
AGREEING = 0.8  # share of them that must each be in the language of all
SURE = 0.5  # confidence in low-accuracy mode above which the full models are not used
LENGTH = 300  # characters that are read; more does not help
NO_PROSE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|\S+@\S+", re.DOTALL)

T = TypeVar("T")
NAMES = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA"}  # first words that are not a script


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str | None:
    if unicodedata.category(character)[0] not in "LM":
        return None
    first = unicodedata.name(character, "?").split()[0]
    return NAMES.get(first, first)


def scripts(text: str) -> Counter[str]:
    """The number of letters and marks of each script in a text, by the first word of their Unicode names (`LATIN`)."""
    counts: Counter[str] = Counter()
    for character, times in Counter(text).items():
        script = _script(character)
        if script is not None:
            counts[script] += times
    return counts


@cache
def expected_scripts(code: str) -> tuple[str, ...]:
    """The scripts of a language, as `scripts` names them; empty where unknown."""
    found = parse(code)
    if found is None or found.script is None:
        return ()
    given, usual = [found.script], parse(found.language)
    if usual is not None and usual.script == found.script and found.language in ALSO:
        given.append(ALSO[found.language])
    return tuple(word for script in given for word in _names(script))


def _names(script: str) -> list[str]:
    return SCRIPTS.get(script, str(Locale("en").scripts[script]).upper().partition(" ")[0]).split()


def _usual_script(code: str) -> set[str]:
    """The script that CLDR expects of a language, which is that of its model in lingua."""
    found = parse(base(code))
    return set(_names(found.script)) if found and found.script else set()


def scripts_apart(code: str, other: str) -> bool:
    """Whether two languages are written in different scripts."""
    own, others = set(expected_scripts(code)), set(expected_scripts(other))
    return bool(own and others) and not own & others


def lingua() -> Any:
    """The optional module `lingua`. Languages in different scripts are distinguished without it."""
    return require("lingua", "identifying languages")


@cache
def lingua_language(code: str) -> Language | None:
    """The language in lingua; None where it has no model of it in its script, such as Hindi in Latin letters."""
    found = parse(code)
    if found and found.script and not _usual_script(code) & set(_names(found.script)):
        return None
    code = {"no": "nb", "fil": "tl"}.get(found.language, found.language) if found else ""
    iso = getattr(lingua().IsoCode639_1, code.upper(), None)
    try:
        return lingua().Language.from_iso_code_639_1(iso) if iso is not None else None
    except ValueError:
        return None


@cache
def _family(code: str) -> frozenset[Language]:
    """The language and very similar ones, in its script."""
    codes = {base(code)}.union(*(group for group in ALIKE_SETS if base(code) in group))
    near = (lingua_language(one) for one in codes if _usual_script(one) & set(expected_scripts(code)))
    return frozenset(language for language in near if language is not None)


def has_model(code: str) -> bool:
    """Whether lingua has a model of this language in its script, or of a very similar one."""
    return bool(_family(code))


@cache
def _detector(languages: tuple[Language, ...], low: bool) -> LanguageDetector:
    """A detector of these languages, or of all where there are none, in low-accuracy mode or not."""
    builder = lingua().LanguageDetectorBuilder
    builder = builder.from_languages(*languages) if languages else builder.from_all_languages()
    return (builder.with_low_accuracy_mode() if low else builder).build()


@cache
def _rivals(code: str, other: str) -> tuple[Language, ...]:
    """The languages that a text in `code` is compared with, including itself."""
    own = set(expected_scripts(code)) or {"LATIN"}
    rivals = [name for name in WIDESPREAD.split() if own & set(expected_scripts(name))]
    known = {lingua_language(name) for name in (*rivals, other, "en")} | _family(code)
    chosen = sorted((language for language in known if language is not None), key=str)
    return (*chosen, lingua().Language.FRENCH) if len(chosen) == 1 else tuple(chosen)  # lingua needs two


def prose(text: str) -> str:
    """The beginning of a text, without code, addresses, links and bytes that are not UTF-8."""
    return NO_PROSE.sub(" ", text)[:LENGTH].encode(errors="ignore").decode()


def confidence(text: str, code: str, other: str) -> tuple[float, str]:
    """The confidence that a text is in the language `code`, or in a very similar one.

    Args:
        text: prose.
        code: the expected language, canonical.
        other: the language of the row's other side, which the text is compared with too.

    Returns:
        The confidence in [0, 1], and the code of the most likely language. For a language without a model in lingua:
        one minus the confidence that it is `other` or English.
    """
    family, rivals = _family(code), _rivals(code, other)
    others = (lingua_language(other), lingua().Language.ENGLISH)
    sure, nearest = 0.0, ""
    for low in (True, False):
        values = _detector(rivals, low).compute_language_confidence_values(text)
        nearest = values[0].language.iso_code_639_1.name.lower()
        sure = sum(value.value for value in values if value.language in (family or others))
        sure = sure if family else 1 - sure
        if sure >= SURE:
            break
    return sure, nearest


def between(text: str, one: str, other: str) -> float | None:
    """The probability that a text is in language `one` and not in `other`; None where the two cannot be distinguished.

    By script where the languages share none, otherwise by lingua: its low-accuracy models of the two, or where it has
    only one of them, the confidence that the text is in that one.
    """
    if scripts_apart(one, other):
        found = scripts(prose(text))
        mine, yours = (sum(found[script] for script in expected_scripts(code)) for code in (one, other))
        return mine / (mine + yours) if mine + yours else 0.5
    text, wanted, rival = prose(text), lingua_language(one), lingua_language(other)
    if wanted is None or rival is None:  # the other languages of the script stand in for the one without a model
        known = confidence(text, one, other) if wanted else confidence(text, other, one) if rival else None
        return None if known is None else known[0] if wanted else 1 - known[0]
    if _family(one) & _family(other):
        return None
    return _detector((wanted, rival), True).compute_language_confidence(text, wanted)


class Spread(Generic[T]):
    """A sample of at most `count` items, evenly spaced over a stream of unknown length."""

    def __init__(self, count: int, items: Iterable[T] = ()) -> None:
        self._count, self._kept, self._step, self._seen = count, list[T](), 1, 0
        for item in items:
            self.add(item)

    def add(self, item: T) -> None:
        """Take the next item of the stream."""
        if self._seen % self._step == 0:
            self._kept.append(item)
            if len(self._kept) == 2 * self._count:
                self._kept, self._step = self._kept[::2], 2 * self._step
        self._seen += 1

    def sample(self) -> list[T]:
        """The sample, in order."""
        most = min(self._count, len(self._kept))
        return [self._kept[place * len(self._kept) // most] for place in range(most)]


def identify_language(texts: Iterable[str]) -> tuple[str | None, list[str]]:
    """The language of texts, of all that lingua knows, by a sample spread over them.

    Consecutive texts of the sample, `TOGETHER` at a time, must all be in it: a file may be sorted by language. And
    most single texts must be, because sentences in a language that lingua does not know are each taken for another: of
    TICO-19's in Hausa 30 % are in the language of all, in Nepali 73 %, and of the 38 sets of TICO-19 and Tatoeba in
    languages that lingua knows 89 to 100 %.

    Returns:
        The language, or None where it is not sure or there are several; and the languages that the sample looks like,
        the most frequent first.
    """
    sample = Spread(IDENTIFIED, texts).sample()
    starts = range(0, max(1, len(sample) - TOGETHER + 1), TOGETHER)
    parts = Counter(filter(None, (_nearest(" ".join(sample[start : start + TOGETHER])) for start in starts)))
    each = Counter(filter(None, (_nearest(text) for text in sample if len(text.split()) >= 5)))  # shorter ones mislead
    looks = [code for code, times in (parts + each).most_common() if parts[code] or times >= 0.1 * each.total()]
    if not parts:
        return None, looks
    code = parts.most_common(1)[0][0]
    alike = {one for one in {*parts, *each} if _family(one) & _family(code)}
    agree = sum(each[one] for one in alike) >= AGREEING * each.total()
    return (code if agree and alike >= parts.keys() else None), looks


def _nearest(text: str) -> str | None:
    found = _detector((), True).compute_language_confidence_values(prose(text))
    sure = bool(found) and found[0].value >= SURE
    return canonical_or_none(found[0].language.iso_code_639_1.name) if sure else None
