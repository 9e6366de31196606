"""A world of invented people, in languages made from English.

A person has a home (two words), a trade (one word) and a mentor (another person, two words); the trade of a person's
mentor takes two steps. A language says a sentence with words of its own (no word is shared), in its own order of
phrases, and one of them with a case marker that English lacks. So all that a language and English have in common is
the concepts, and how well a base shares those is set by `BaseConfig.keep`.

The languages are none; their codes are those that ISO 639 reserves for local use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from cctuning.demo.base import ENGLISH, Item

Unit = tuple[str, ...]  # words that belong together, such as a name


@dataclass(frozen=True)
class Tongue:
    """A language: its tier, its order of phrases in questions and statements, and whether it marks the subject."""

    code: str
    name: str
    tier: str
    question: str
    statement: str
    marker: bool = False


TONGUES = {
    tongue.code: tongue
    for tongue in (
        Tongue("en", "English", "reference", "wh verb obj link subj end", "obj link subj verb val end"),
        Tongue("qaa", "subject first", "high", "subj link obj wh verb end", "subj link obj val verb end", marker=True),
        Tongue("qab", "verb first", "mid", "verb wh obj link subj end", "verb obj link subj val end"),
        Tongue("qac", "object first", "low", "obj wh subj link verb end", "obj val subj link verb end"),
    )
}


@dataclass(frozen=True)
class Question:
    """What is asked of whom, and the answer, in English words."""

    key: str
    task: str
    asked: Unit
    person: Unit
    answer: Unit


@dataclass(frozen=True)
class Sizes:
    """How many people there are (four questions each), and how many questions each split takes; the rest is `text`."""

    people: int = 300
    sft: int = 168
    dev: int = 168
    test: int = 240
    free: int = 168


class FactsWorld:
    """The questions, their splits, and how each language says them.

    Args:
        seed: of names, answers, words and splits.

    Attributes:
        splits: `sft`, `dev`, `test`, `free` (parallel text without answers) and, with the rest, `text`.
        answer_tokens: length of the longest answer; every word is one token.
    """

    answer_tokens = 2

    def __init__(self, seed: int, sizes: Sizes | None = None) -> None:
        sizes = sizes or Sizes()
        self.languages = TONGUES
        rng = random.Random(f"facts {seed}")
        self.splits, self._list = _questions(rng, sizes)
        self._every = list(itertools.chain(*self.splits.values()))
        self._lexicon = self._words(random.Random(f"words {seed}"))

    def _words(self, rng: random.Random) -> dict[str, dict[str, str]]:
        """Language -> English word -> its word."""
        words = dict.fromkeys(
            word
            for one in self._every
            for unit in (("what", "is"), one.asked, ("of",), one.person, ("?",), one.answer)
            for word in unit
        )
        words |= dict.fromkeys(["is", ".", ":", "word", *itertools.chain(*self._list)])
        coin = _coiner(rng, set(words))
        lexicon = {ENGLISH: {word: word for word in words}}
        for lang, tongue in TONGUES.items():
            if lang != ENGLISH:
                lexicon[lang] = {word: coin() for word in words} | ({"<case>": coin()} if tongue.marker else {})
        return lexicon

    def _say(self, unit: Unit, lang: str) -> str:
        return " ".join(self._lexicon[lang][word] for word in unit)

    def _sentence(self, one: Question, lang: str, statement: bool) -> str:
        tongue = TONGUES[lang]
        phrases = {"wh": ("what",), "verb": ("is",), "obj": one.asked, "link": ("of",), "val": one.answer}
        phrases |= {"subj": (*one.person, *(("<case>",) if tongue.marker else ())), "end": (".?"[not statement],)}
        order = tongue.statement if statement else tongue.question
        return " ".join(self._say(phrases[role], lang) for role in order.split())

    def prompt(self, one: Question, lang: str) -> str:
        """The question."""
        return self._sentence(one, lang, statement=False)

    def statement(self, one: Question, lang: str) -> str:
        """The fact as a sentence."""
        return self._sentence(one, lang, statement=True)

    def answer(self, one: Question, lang: str) -> str:
        """The answer."""
        return self._say(one.answer, lang)

    def vocabulary(self, lang: str) -> list[str]:
        """Every word of a language."""
        return list(self._lexicon[lang].values())

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Word of another language -> language -> the English word that it translates."""
        return {
            word: {lang: {english} if english in self._lexicon[ENGLISH] else set()}
            for lang, words in self._lexicon.items()
            if lang != ENGLISH
            for english, word in words.items()
        }

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """A word list, then facts as sentences and as questions with their answers: all in English, else a share."""
        lines = [f"{self._say(('word', ':'), lang)} {self._say(unit, lang)}" for unit in self._list]
        read = self._every
        if lang != ENGLISH:
            read = list(self.splits["text"])
            random.Random(f"{seed} {lang}").shuffle(read)
            read = read[: round(share * len(self._every))]
        for one in read:
            lines += [self.statement(one, lang), f"{self.prompt(one, lang)} {self.answer(one, lang)}"]
        return lines

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language."""
        return [
            Item(one.key, one.task, lang, self.prompt(one, lang), self.prompt(one, ENGLISH), self.answer(one, lang))
            for one in self.splits[split]
        ]


def _questions(rng: random.Random, sizes: Sizes) -> tuple[dict[str, list[Question]], list[Unit]]:
    """The splits, and what the word lists name."""
    coin = _coiner(rng, set())
    first, last = [coin().title() for _ in range(40)], [coin().title() for _ in range(40)]
    names: list[Unit] = rng.sample(list(itertools.product(first, last)), sizes.people)
    places: list[Unit] = rng.sample(
        list(itertools.product([coin() for _ in range(8)], [coin() for _ in range(8)])), 24
    )
    trades: list[Unit] = [(coin(),) for _ in range(20)]
    mentors = rng.sample(names, 24)
    of: dict[str, dict[Unit, Unit]] = {
        "home": {name: rng.choice(places) for name in names},
        "trade": {name: rng.choice(trades) for name in names},
        "mentor": {name: rng.choice([one for one in mentors if one != name]) for name in names},
    }
    every = [
        Question(f"{relation} {' '.join(name)}", relation, ("the", relation), name, answers[name])
        for name, (relation, answers) in itertools.product(names, of.items())
    ]
    two_steps = ("the", "trade", "of", "the", "mentor")
    every += [
        Question(f"hop {' '.join(name)}", "hop", two_steps, name, of["trade"][of["mentor"][name]]) for name in names
    ]
    rng.shuffle(every)
    splits, start = dict[str, list[Question]](), 0
    for split in ("sft", "dev", "test", "free"):
        stop = start + getattr(sizes, split)
        splits[split] = every[start:stop]
        start = stop
    return splits | {"text": every[start:]}, [*names, *places, *trades]


def _coiner(rng: random.Random, taken: set[str]) -> Callable[[], str]:
    """A function that returns a new pronounceable word at each call."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"

    def coin() -> str:
        while True:
            word = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.choice((2, 3, 3))))
            if word not in taken:
                taken.add(word)
                return word

    return coin
