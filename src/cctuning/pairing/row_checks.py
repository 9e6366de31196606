"""Checks of single rows, and the figures that the checks of all rows need.

Text that is on both sides (a quoted sentence, code, a link, a name) is removed before a side's language, script or
length is checked: a Chinese prompt that asks for the translation of an English sentence is Chinese. Where too little
is left to identify a language, the whole text is checked too: an untranslated prompt shares words with its parallel.
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
LETTERS = 4  # fewest letters of a text whose script is checked
COPY, REPEAT, LEAK, RESTATE = 3, 4, 8, 2  # tokens per n-gram, by check
CLEAR = 0.7  # confidence above which a text is surely in the other side's language
RESTATED = 0.3  # share of a response's bigrams in the prompt above which it restates the question


@dataclass(slots=True)
class Figures:
    """What the checks of all rows and the card need from a row."""

    same: int  # hash that duplicates share
    group: int  # hash of the parallel: rows that share it are written together
    ratio: float | None  # log of the length of the prompt over that of the parallel, without shared text; or None
    size: int  # characters of the parallel
    ends: int  # bit 1: the prompt has final punctuation, bit 2: the parallel has
    lengths: tuple[int, ...]  # characters and words (or tokens) of prompt, parallel, response


@dataclass(slots=True)
class Verdict:
    """The problems of a row; figures where it has none."""

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
        """Load language models now, so that forked workers share them."""
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
        """Check script and language; each side is given whole and without shared text."""
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
        # Where a character is a word or a syllable, a third of the letters is enough.
        dense = not DENSE.isdisjoint(expected_scripts(lang))
        return letters * (3 if dense else 1) >= self.checks.check_language_letters

    def _language(self, name: str, own: str, whole: str, lang: str, other_lang: str) -> Problem | None:
        """Check the text that only this side has."""
        sure, nearest = confidence(own, lang, other_lang)
        if sure >= self.checks.check_language:
            return None
        if not identifiable(lang) and nearest not in (base(other_lang), "en"):
            return None
        return _in_language(name, nearest, lang, sure)

    def _left(self, name: str, own: str, whole: str, lang: str, other_lang: str) -> Problem | None:
        """Check the whole text, where too little is left alone: it may be in the other side's language.

        What is left must be in that language too, because a short request may quote a long sentence of any language.
        """
        if not scripts(own) or not self._enough(scripts(whole).total(), lang) or not identifiable(other_lang):
            return None
        sure, nearest = 0.0, ""
        for text in (own, whole):
            sure, nearest = confidence(text, lang, other_lang)
            if sure >= self.checks.check_language or nearest != base(other_lang):
                return None
        return _in_language(name, nearest, lang, sure) if confidence(whole, other_lang, lang)[0] >= CLEAR else None

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
                problems.append(Problem("copy", f"{share:.0%} of the prompt is in the parallel unchanged."))
        if self.checks.check_numbers:
            apart = differ(text, other, base(row.lang))
            if apart is not None:
                left, right = (", ".join(side[:5]) for side in apart)
                problems.append(Problem("numbers", f"only the prompt has {left}; only the parallel has {right}."))
        if row.response is not None:
            said = self._leaked(row, words, other_words)
            problems += [Problem("leak", said)] if said else []
        return problems

    def _leaked(self, row: Candidate, words: list[str], other_words: list[str]) -> str | None:
        """Whether the parallel contains the response, or the response in its own language, and the prompt does not.

        Many prompts contain their answer (correct this sentence: ...), and a short answer may occur anywhere. So
        n-grams of `LEAK` tokens count, and only where the prompt has few of the response's `RESTATE`-grams, which are
        short because responses are often translated separately, in other words. `leak`, by which `train` rejects
        rows, comes first and cannot be turned off.
        """
        assert row.response is not None and row.reference is not None
        said = leak(row.prompt, row.response, row.reference)
        if said:
            return f"parallel: {said}"
        answer = tokens(row.response)
        if not self.checks.check_leak or found(ngrams(answer, RESTATE), ngrams(words, RESTATE)) >= RESTATED:
            return None
        given = ngrams(other_words, LEAK)
        for response in (answer, tokens(row.reference_response or "")):
            share = found(ngrams(response, LEAK), given)
            if share >= self.checks.check_leak:
                return f"{share:.0%} of the response is in the parallel, and almost none of it in the prompt."
        return None

    def _repeats(self, name: str, words: list[str], other_words: list[str]) -> list[Problem]:
        """Whether a side repeats itself while the other does not."""
        share, other = _repeated(words), _repeated(other_words)
        if not self.checks.check_repeat or share < self.checks.check_repeat or share - other < 0.3:
            return []
        return [Problem("repeat", f"{name}: {share:.0%} of it is repetition.")]

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


def _in_language(name: str, nearest: str, lang: str, sure: float) -> Problem:
    return Problem("language", f"{name}: is in {nearest}, not {lang} (confidence {sure:.2f}).")


def _alone(text: str, other: str) -> str:
    """`text` without the words of `other`; the whole text where that leaves no letters."""
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
    """A 64-bit hash; two of a million different rows share one in 1 of 37 million runs."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
