"""The checks that look at one row alone, and the figures that the checks of all rows together need from it.

An `Inspector` is what a worker process holds. Each check returns what it has against the row in words, or None. Text
that stands on both sides (a quoted sentence, code, a link, a name) is left out before a side's language, script or
length is judged: a Chinese prompt that asks for the translation of an English sentence is Chinese. Where too little is
left to know a language by, the whole text is asked too: a prompt left in English has words of its parallel's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from cctuning import identify
from cctuning.data.text import TOKEN, ascii_digits, flat, found, leak, ngrams, normalise, tokens
from cctuning.identify import confidence, expected_scripts, identifiable, prose, scripts
from cctuning.languages import base
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.candidates import Candidate, Problem
from cctuning.pairing.numbers import differ
from cctuning.pairing.options import Checks

ENDINGS = frozenset(".!?。！？…؟।॥۔။៕፡።:：;")
CLOSERS = "\"'”’»」』)）]】}›` \n\t\u200b\u200f\u202c"
DENSE = frozenset(("CJK", "HIRAGANA", "HANGUL", "THAI"))
LETTERS = 4  # letters from which a text's script is judged
COPY, REPEAT, LEAK, BY_RIGHT = 3, 4, 8, 2  # tokens in an n-gram, by check
CLEAR = 0.7  # confidence from which a text is in the other side's language beyond doubt
RESTATED = 0.3  # share of a response's bigrams in the prompt from which the answer restates what was asked


@dataclass(slots=True)
class Figures:
    """What the checks of all rows together, and the card, need to know of a row."""

    same: int  # hash of what makes two rows duplicates
    group: int  # hash of the parallel: rows that share it stand together
    ratio: float | None  # log of prompt's over parallel's length in characters, without what both have; or None
    size: int  # characters of the parallel
    ends: int  # bit 1: the prompt ends as a sentence does, bit 2: the parallel does
    lengths: tuple[int, ...]  # characters and words (or tokens) of prompt, parallel, response


@dataclass(slots=True)
class Verdict:
    """What the inspector has against a row; figures where it has nothing."""

    problems: list[Problem]
    figures: Figures | None = None


class Inspector:
    """Checks rows one by one.

    Args:
        checks: the thresholds.
        language: of the parallels, canonical.
        benchmarks: evaluation texts that no row may hold, or None.
        tokenizer: directory or hub name of the tokenizer that lengths are counted with, or None for words.
    """

    def __init__(
        self, checks: Checks, language: str, benchmarks: Benchmarks | None = None, tokenizer: str | None = None
    ) -> None:
        self.checks, self.language, self.benchmarks = checks, language, benchmarks
        self.tokenizer: Any = None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def load(self, langs: Collection[str]) -> None:
        """Load what is otherwise loaded on first use, so that workers forked after this share it."""
        if self.checks.check_language:
            for lang in (self.language, *langs):
                identify.load(lang, self.language)

    def __call__(self, rows: list[Candidate]) -> list[Verdict]:
        """Verdicts in the rows' order."""
        return [self._inspect(row) for row in rows]

    def _inspect(self, row: Candidate) -> Verdict:
        text = flat(row.prompt)
        other = flat(row.reference) if row.reference is not None else None
        words, other_words = tokens(text), tokens(other) if other is not None else []
        own, other_own = (_alone(text, other), _alone(other, text)) if other is not None else (text, None)
        problems = self._of_languages(row, (text, own), (other, other_own))
        if other is not None:
            problems += self._of_pair(row, text, other, words, other_words)
        problems += self._repeats("prompt", words, other_words)
        if other is not None:
            problems += self._repeats("parallel", other_words, words)
        if self.benchmarks is not None and self.checks.check_against:
            asked = [part for part in (text, other) if part]
            answers = [part for part in (row.response, row.reference_response) if part]
            hit = self.benchmarks.hit(asked, answers, self.checks.check_against)
            problems += [Problem("against", hit)] if hit else []
        ratio = math.log(max(len(own), 1) / max(len(other_own), 1)) if other_own is not None else None
        return Verdict(problems, None if problems else self._figures(row, text, other, ratio))

    # -- language and script ----------------------------------------------------------------------------------------

    def _of_languages(
        self, row: Candidate, text: tuple[str, str], other: tuple[str | None, str | None]
    ) -> list[Problem]:
        """Each side comes whole, and without what the other has."""
        problems = []
        for name, (whole, own), lang, other_lang in (
            ("prompt", text, row.lang, self.language),
            ("parallel", other, self.language, row.lang),
        ):
            if whole is None or own is None:
                continue
            own = prose(own)
            counts = scripts(own)
            said = self._script(name, counts, lang)
            if said is None and self.checks.check_language:
                judge = self._language if self._enough(counts.total(), lang) else self._left
                said = judge(name, own, prose(whole), lang, other_lang)
            problems += [said] if said else []
        return problems

    def _script(self, name: str, counts: Counter[str], lang: str) -> Problem | None:
        expected = expected_scripts(lang)
        if not expected or not self.checks.check_script or counts.total() < LETTERS:
            return None
        share = sum(counts[script] for script in expected) / counts.total()
        if share >= self.checks.check_script:
            return None
        most, times = counts.most_common(1)[0]
        says = f"{share:.0%} of its letters are {lang}'s; most are {most.title()} ({times / counts.total():.0%})."
        return Problem("script", f"{name}: {says}")

    def _enough(self, letters: int, lang: str) -> bool:
        # Where one character is a word or a syllable, a third of the letters say as much.
        dense = not DENSE.isdisjoint(expected_scripts(lang))
        return letters * (3 if dense else 1) >= self.checks.check_language_letters

    def _language(self, name: str, own: str, whole: str, lang: str, other_lang: str) -> Problem | None:
        """By what the side has alone."""
        sure, nearest = confidence(own, lang, other_lang)
        if sure >= self.checks.check_language:
            return None
        if not identifiable(lang) and nearest not in (base(other_lang), "en"):
            return None
        return _reads_as(name, nearest, lang, sure)

    def _left(self, name: str, own: str, whole: str, lang: str, other_lang: str) -> Problem | None:
        """By the whole text, where the side has too little alone: it was left in the other's language.

        The little must read so too, because a short request may quote a long sentence of any language.
        """
        if not scripts(own) or not self._enough(scripts(whole).total(), lang) or not identifiable(other_lang):
            return None
        sure, nearest = 0.0, ""
        for text in (own, whole):
            sure, nearest = confidence(text, lang, other_lang)
            if sure >= self.checks.check_language or nearest != base(other_lang):
                return None
        return _reads_as(name, nearest, lang, sure) if confidence(whole, other_lang, lang)[0] >= CLEAR else None

    # -- the two sides together -------------------------------------------------------------------------------------

    def _of_pair(
        self, row: Candidate, text: str, other: str, words: list[str], other_words: list[str]
    ) -> list[Problem]:
        problems = []
        if self.checks.check_copy and any(character.isalpha() for character in text):
            share = (
                1.0 if normalise(text) == normalise(other) else found(ngrams(words, COPY), ngrams(other_words, COPY))
            )
            if share >= self.checks.check_copy:
                problems.append(Problem("copy", f"{share:.0%} of the prompt stands in the parallel as it is."))
        if self.checks.check_numbers:
            apart = differ(text, other, base(row.lang))
            if apart is not None:
                left, right = (", ".join(side[:5]) for side in apart)
                problems.append(Problem("numbers", f"the prompt alone has {left}; the parallel alone has {right}."))
        if row.response is not None:
            said = self._leaked(row, words, other_words)
            problems += [Problem("leak", said)] if said else []
        return problems

    def _leaked(self, row: Candidate, words: list[str], other_words: list[str]) -> str | None:
        """The response, or the parallel's own, in the parallel and not likewise in the prompt.

        Many a prompt holds its answer by right (correct this sentence: ...), and a short one may stand anywhere; so
        what counts is n-grams of `LEAK` tokens, and only where the prompt has few of its response's `BY_RIGHT`-grams.
        Those are short because the two responses were often translated apart from the prompts, in other words. The
        rule of `cctuning.data`, which `train` refuses by, comes first and cannot be turned off.
        """
        assert row.response is not None and row.reference is not None
        said = leak(row.prompt, row.response, row.reference)
        if said:
            return f"parallel: {said}"
        answer = tokens(row.response)
        if not self.checks.check_leak or found(ngrams(answer, BY_RIGHT), ngrams(words, BY_RIGHT)) >= RESTATED:
            return None
        given = ngrams(other_words, LEAK)
        for response in (answer, tokens(row.reference_response or "")):
            share = found(ngrams(response, LEAK), given)
            if share >= self.checks.check_leak:
                return f"{share:.0%} of the response stands in the parallel, and next to none of it in the prompt."
        return None

    def _repeats(self, name: str, words: list[str], other_words: list[str]) -> list[Problem]:
        """A side that goes round in a loop while the other does not."""
        share, other = _repeated(words), _repeated(other_words)
        if not self.checks.check_repeat or share < self.checks.check_repeat or share - other < 0.3:
            return []
        return [Problem("repeat", f"{name}: {share:.0%} of it repeats what it said before.")]

    # -- figures ----------------------------------------------------------------------------------------------------

    def _figures(self, row: Candidate, text: str, other: str | None, ratio: float | None) -> Figures:
        same = json.dumps(
            [normalise(text), normalise(other or ""), normalise(row.response or ""), row.lang], ensure_ascii=False
        )
        return Figures(
            same=_hash(same),
            group=_hash(json.dumps(row.reference if row.reference is not None else row.prompt, ensure_ascii=False)),
            ratio=ratio,
            size=len(other) if other is not None else 0,
            ends=_ends(text) + 2 * _ends(other or ""),
            lengths=tuple(n for part in (text, other, row.response) for n in (len(part or ""), self._count(part))),
        )

    def _count(self, text: str | None) -> int:
        if not text:
            return 0
        if self.tokenizer is not None:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return len(text.split())


def _reads_as(name: str, nearest: str, lang: str, sure: float) -> Problem:
    return Problem("language", f"{name}: reads as {nearest}, not {lang} (confidence {sure:.2f}).")


def _alone(text: str, other: str) -> str:
    """`text` without the words that stand in `other`, unless that leaves no letter: then the text."""
    text = ascii_digits(text)
    shared = set(TOKEN.findall(ascii_digits(other).casefold()))
    own = TOKEN.sub(lambda word: " " if word[0].casefold() in shared else word[0], text)
    return own if any(character.isalpha() for character in own) else text


def _repeated(words: list[str]) -> float:
    grams = ngrams(words, REPEAT)
    return 1 - len(set(grams.tolist())) / len(grams) if len(grams) >= 4 * REPEAT else 0.0


def _ends(text: str) -> int:
    return int(text.rstrip(CLOSERS)[-1:] in ENDINGS and text.strip() != "")


def _hash(text: str) -> int:
    """64 bits: among a million rows, two that differ share one once in 37 million runs."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
