"""Rows on their way through `cctuning pair`, the checks of single rows, and the figures for the checks of all rows.

Text that is on both sides (a quoted sentence, code, a link, a name) is removed before a side's language, script or
length is checked: a Chinese prompt that asks for the translation of an English sentence is Chinese. Where too little
is left to identify a language, the whole text is checked too: an untranslated prompt shares words with its parallel.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cctuning.data.schema import BadRow, Row
from cctuning.data.text import TOKEN, ascii_digits, flat, found, hash64, leak, ngrams, normalise, tokens
from cctuning.identify import confidence, expected_scripts, has_model, prose, scripts
from cctuning.languages import ENGLISH, base
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.numbers import differ
from cctuning.pairing.options import Checks

ENDINGS = frozenset(".!?。！？…؟।॥۔။៕፡።:：;")
ITEMS = frozenset(":：;")  # end items of a list too, which may have no mark on the other side
# “, ‘, « and ‹ close quotations in German, Danish and other languages.
CLOSERS = "\"'”’»“‘«‹」』》〉)）]】}›` \n\t\u200b\u200f\u202c"
DENSE = frozenset(("CJK", "HIRAGANA", "HANGUL", "THAI"))
LETTERS = 4  # fewest letters of a text whose script is checked
COPY, REPEAT, LEAK, RESTATE = 3, 4, 8, 2  # tokens per n-gram, by check
CLEAR = 0.7  # confidence above which a text is surely in the other side's language
RESTATED = 0.3  # share of a response's bigrams in the prompt above which it restates the question


@dataclass(slots=True)
class Problem:
    """What a check has against a row: the `check` and an explanation."""

    check: str
    says: str


@dataclass(slots=True)
class Candidate(Row):
    """A row before the checks. `reference` None: it is in the reference language and is its own parallel."""

    source: int = 0  # its number in the recipe
    reference_origin: str | None = None
    id: Any = None
    record: Any = None  # as it was read, where it is not a row or found no parallel
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, row: Row | BadRow, origin: str, record: Any, source: int) -> Candidate:
        """The row that was read from a record, or the record with its problem."""
        if isinstance(row, BadRow):
            bad = cls("", None, "", None, None, origin, source=source, record=dict(record))
            bad.problems.append(Problem("row", str(row)))
            return bad
        id = record.get("id")
        values: dict[str, Any] = {name: getattr(row, name) for name in Row.__slots__}
        return cls(**values, source=source, id=id if isinstance(id, (str, int)) else None)

    def as_row(self, language: str) -> dict[str, Any]:
        """The columns that `cctuning train` reads, the parallel's named after the reference language."""
        row = {} if self.id is None else {"id": self.id}
        response: Any = self.response
        if self.calls:
            response = [{"role": "assistant", "content": self.response or "", "tool_calls": self.calls}]
        prompt = self.prompt
        if isinstance(prompt, list):  # earlier answers of a conversation; those of a prompt are read without a loss
            prompt = [{"train": True, **turn} if turn["role"] == "assistant" else turn for turn in prompt]
        row |= {"lang": self.lang, "prompt": prompt, "response": response}
        optional = {
            f"prompt_{language}": self.reference,
            f"response_{language}": self.reference_response,
            "thinking": self.thinking,
            "tools": self.tools,
            "chat_template_kwargs": self.arguments,
            "origin": self.origin,
            f"origin_{language}": self.reference_origin,
        }
        return row | {name: value for name, value in optional.items() if value is not None}


class Figures(NamedTuple):
    """What the checks of all rows and the card need from a row."""

    same: int  # hash that duplicates share
    group: int  # hash of the parallel: rows that share it are written together
    ratio: float  # log of the length of the prompt over that of the parallel, without shared text; nan: no parallel
    size: int  # characters of the parallel
    ends: int  # bit 1: the prompt has final punctuation, bit 2: the parallel has; 0 where only one ends like an item
    answered: bool  # has a response


Verdict = tuple[list[Problem], Figures | None]  # the problems of a row; figures where it has none


@dataclass(slots=True)
class Side:
    """The prompt or the parallel of a row. `own`: the text without the words that are on the other side too."""

    name: str
    text: str
    lang: str
    own: str = ""
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own, self.words = self.text, tokens(self.text)


def inspect(row: Candidate, checks: Checks, language: str, benchmarks: Benchmarks | None = None) -> Verdict:
    """The verdict on a row whose parallel is in `language`."""
    if row.problems:
        return row.problems, None
    prompt, parallel = Side("prompt", flat(row.prompt), row.lang), Side("parallel", "", language)
    sides = [(prompt, parallel)]
    if row.reference is not None:
        parallel = Side("parallel", flat(row.reference), language)
        prompt.own, parallel.own = _alone(prompt.text, parallel.text), _alone(parallel.text, prompt.text)
        sides = [(prompt, parallel), (parallel, prompt)]
    problems = []
    for side, other in sides:
        if says := wrong_script(checks, side):
            problems.append(Problem("script", f"{side.name}: {says}"))
        elif says := wrong_language(checks, side, other):
            problems.append(Problem("language", f"{side.name}: {says}"))
        if says := repeated(checks, side, other):
            problems.append(Problem("repeat", f"{side.name}: {says}"))
    if row.reference is not None:
        for name, check in (("copy", copied), ("numbers", numbers_apart), ("leak", leaked)):
            if says := check(checks, row, prompt, parallel):
                problems.append(Problem(name, says))
    if benchmarks is not None and checks.check_against:
        answers = [part for part in (row.response, row.reference_response) if part]
        asked = [side.text for side in (prompt, parallel) if side.text]
        if says := benchmarks.hit(asked, answers, checks.check_against):
            problems.append(Problem("against", says))
    return problems, None if problems else _figures(row, prompt, parallel)


def _figures(row: Candidate, prompt: Side, parallel: Side) -> Figures:
    parts = (prompt.text, parallel.text, row.response or "")
    rest = (row.lang, row.thinking, row.calls, row.tools, row.arguments)
    same = json.dumps([*map(normalise, parts), *rest], ensure_ascii=False, default=str)
    whole = [ascii_digits(side.text) for side in (prompt, parallel)]
    own = [prompt.own, parallel.own]
    if any(one == text for one, text in zip(own, whole, strict=True)):
        own = whole  # all words of one side are shared: `Antigua na Barbuda` and `Antigua & Barbuda`
    lengths = [max(len(" ".join(text.split())), 1) for text in own]
    return Figures(
        same=hash64(same),
        group=hash64(json.dumps(row.reference if row.reference is not None else row.prompt, ensure_ascii=False)),
        ratio=math.nan if row.reference is None else math.log(lengths[0] / lengths[1]),
        size=len(parallel.text),
        ends=_ends(prompt.text, parallel.text),
        answered=row.response is not None,
    )


def wrong_script(checks: Checks, side: Side) -> str | None:
    """Whether too few letters are in a script of the side's language."""
    expected, counts = expected_scripts(side.lang), scripts(prose(side.own))
    letters = counts.total()
    if not expected or not checks.check_script or letters < LETTERS:
        return None
    share = sum(counts[script] for script in expected) / letters
    if share >= checks.check_script:
        return None
    most, times = counts.most_common(1)[0]
    return f"{share:.0%} of its letters are {side.lang}'s; most are {most.title()} ({times / letters:.0%})."


def wrong_language(checks: Checks, side: Side, other: Side) -> str | None:
    """Whether a side is in another language than it should be.

    Where little is left without the shared words, the whole text must be in the other side's language, and what is
    left too, because a short request may quote a long sentence of any language.
    """
    if not checks.check_language:
        return None
    own, whole = prose(side.own), prose(side.text)

    def enough(text: str) -> bool:
        # Where a character is a word or a syllable, a third of the letters is enough.
        dense = not DENSE.isdisjoint(expected_scripts(side.lang))
        return scripts(text).total() * (3 if dense else 1) >= checks.check_language_letters

    if enough(own):
        sure, nearest = confidence(own, side.lang, other.lang)
        wrong = sure < checks.check_language and (has_model(side.lang) or nearest in (base(other.lang), ENGLISH))
        return _in_language(nearest, side.lang, sure) if wrong else None
    if not scripts(own) or not enough(whole) or not has_model(other.lang):
        return None
    sure, nearest = 0.0, ""
    for text in (own, whole):
        sure, nearest = confidence(text, side.lang, other.lang)
        if sure >= checks.check_language or nearest != base(other.lang):
            return None
    clear = confidence(whole, other.lang, side.lang)[0] >= CLEAR
    return _in_language(nearest, side.lang, sure) if clear else None


def repeated(checks: Checks, side: Side, other: Side) -> str | None:
    """Whether a side repeats itself while the other does not."""
    share, elsewhere = _repetition(side.words), _repetition(other.words)
    if not checks.check_repeat or share < max(checks.check_repeat, elsewhere + 0.3):
        return None
    return f"{share:.0%} of it is repetition."


def copied(checks: Checks, row: Candidate, prompt: Side, parallel: Side) -> str | None:
    """Whether the prompt is the parallel, or most of it is."""
    if not checks.check_copy or not any(character.isalpha() for character in prompt.text):
        return None
    equal = normalise(prompt.text) == normalise(parallel.text)
    share = 1.0 if equal else found(ngrams(prompt.words, COPY), ngrams(parallel.words, COPY))
    return f"{share:.0%} of the prompt is in the parallel unchanged." if share >= checks.check_copy else None


def numbers_apart(checks: Checks, row: Candidate, prompt: Side, parallel: Side) -> str | None:
    """Whether each side has a number that the other lacks."""
    apart = differ(prompt.text, parallel.text, base(row.lang)) if checks.check_numbers else None
    if apart is None:
        return None
    left, right = (", ".join(side[:5]) for side in apart)
    return f"only the prompt has {left}; only the parallel has {right}."


def leaked(checks: Checks, row: Candidate, prompt: Side, parallel: Side) -> str | None:
    """Whether the parallel contains the response, or the response in its own language, and the prompt does not.

    Many prompts contain their answer (correct this sentence: ...), and a short answer may occur anywhere. So n-grams
    of `LEAK` tokens count, and only where the prompt has few of the response's `RESTATE`-grams, which are short
    because responses are often translated separately, in other words. `leak`, by which `train` rejects rows, comes
    first and cannot be turned off.
    """
    if row.response is None or row.reference is None:
        return None
    if says := leak(row.prompt, row.response, row.reference):
        return f"parallel: {says}"
    answer = tokens(row.response)
    if not checks.check_leak or found(ngrams(answer, RESTATE), ngrams(prompt.words, RESTATE)) >= RESTATED:
        return None
    given = ngrams(parallel.words, LEAK)
    share = max(found(ngrams(words, LEAK), given) for words in (answer, tokens(row.reference_response or "")))
    if share < checks.check_leak:
        return None
    return f"{share:.0%} of the response is in the parallel, and almost none of it in the prompt."


def _in_language(nearest: str, lang: str, sure: float) -> str:
    return f"is in {nearest}, not {lang} (confidence {sure:.2f})."


def _alone(text: str, other: str) -> str:
    """`text` without the words of `other`; the whole text where that leaves no letters."""
    text = ascii_digits(text)
    shared = set(TOKEN.findall(ascii_digits(other).casefold()))
    own = TOKEN.sub(lambda word: " " if word[0].casefold() in shared else word[0], text)
    return own if any(character.isalpha() for character in own) else text


def _repetition(words: list[str]) -> float:
    grams = ngrams(words, REPEAT)
    return 1 - len(set(grams.tolist())) / len(grams) if len(grams) >= 4 * REPEAT else 0.0


def _ends(prompt: str, parallel: str) -> int:
    last = [text.rstrip(CLOSERS)[-1:] for text in (prompt, parallel)]
    closed = [mark in ENDINGS for mark in last]
    if closed[0] != closed[1] and not ITEMS.isdisjoint(last):
        return 0
    return closed[0] + 2 * closed[1]
