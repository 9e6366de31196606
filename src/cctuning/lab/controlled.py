"""Controlled worlds: languages made from English, with what a transfer can depend on as knobs.

A sentence is a handful of phrases with roles (question word, verb, object, link, subject, value). A language says it
with words of its own (a bijection of the vocabulary: no word is shared), in its own order of phrases, with a case
marker that English lacks, or with the parts of a name or number turned round. So everything a language and English
have in common is the concepts, and how well a base shares those is the base's knob (`keep`, base.py).

Three kinds, by the questions asked:

- `facts`: invented people with a home (two words), a trade (one), a mentor (two, one of the people), and the trade of
  a mentor (two hops).
- `sums`: sums of number words alone, in full: what is left to transfer when plain SFT has closed the other skills.
- `skills`: sums of number words (answers of one or two words), sorting three numbers (three words), which of two is
  larger (yes or no), and the topic of three words (one of five).

Nothing here is a language; codes are those that ISO 639 reserves for local use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from cctuning.lab.worlds import ENGLISH, Item

Unit = tuple[str, ...]  # words that belong together: a name, a number
Phrases = Mapping[str, tuple[Unit, ...]]  # role -> units

_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@dataclass(frozen=True)
class Tongue:
    """How a language builds sentences.

    Attributes:
        question, statement: the order of roles. turned: units of two words are said the other way round.
        marker: the subject carries a case marker, a word of its own.
    """

    code: str
    name: str
    tier: str
    question: str
    statement: str
    turned: bool = False
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
    """A question in roles, and its answer as units."""

    key: str
    task: str
    phrases: Phrases
    answer: tuple[Unit, ...]


@dataclass(frozen=True)
class Sizes:
    """How many questions there are, and how many of them each split takes; the rest is `text`."""

    people: int = 300
    addends: int = 36  # of `sums`: 0 to 35
    skills: int = 300  # of each of the four kinds
    drill: int = 1200  # more of each, which English alone reads
    sft: int = 168
    dev: int = 168
    test: int = 240
    free: int = 168


class ControlledWorld:
    """The questions, their splits and how each language says them.

    Args:
        kind: `facts`, `sums` or `skills`. seed: of names, answers, words and splits. sizes: as in `Sizes`.
        answers_alike: say answers with English's words in every language (a pitfall kept as a knob: such answers can
            be copied, and a method that copies looks as if it transferred).
        turned: every language but English says the parts of names and numbers the other way round.
        english_only: what other languages will be asked, they have never read; False: they read of everything.
    """

    def __init__(
        self,
        kind: str,
        seed: int,
        sizes: Sizes | None = None,
        *,
        answers_alike: bool = False,
        turned: bool = False,
        english_only: bool = True,
    ) -> None:
        sizes = sizes or Sizes()
        self.kind, self.seed, self.sizes = kind, seed, sizes
        self.answers_alike, self.english_only = answers_alike, english_only
        self.languages = {code: replace(tongue, turned=turned and code != ENGLISH) for code, tongue in TONGUES.items()}
        rng = random.Random(f"{kind} {seed}")
        made = {"facts": _people, "sums": _sums, "skills": _skills}[kind](rng, sizes)
        questions, self._drill, self._list = made
        rng.shuffle(questions)
        self.answer_tokens = max(sum(map(len, question.answer)) for question in questions)
        self.splits: dict[str, list[Question]] = {}
        start = 0
        for split in ("sft", "dev", "test", "free"):
            stop = start + getattr(sizes, split)
            self.splits[split] = questions[start:stop]
            start = stop
        self.splits["text"] = questions[start:]
        self._lexicon = self._words()

    def _words(self) -> dict[str, dict[str, str]]:
        """Language -> English word -> its word, none of them shared."""
        words = dict.fromkeys(
            word
            for question in [*itertools.chain(*self.splits.values()), *self._drill]
            for units in [*question.phrases.values(), question.answer]
            for unit in units
            for word in unit
        )
        words |= dict.fromkeys(["is", ".", ":", "word", *(word for unit in self._list for word in unit)])
        rng = random.Random(f"words {self.seed}")
        coin = _coiner(rng, set(words))
        lexicon = {ENGLISH: {word: word for word in words}}
        for lang, tongue in self.languages.items():
            if lang != ENGLISH:
                lexicon[lang] = {word: coin() for word in words} | ({"<case>": coin()} if tongue.marker else {})
        return lexicon

    # -- saying ------------------------------------------------------------------------------------------------------

    def _say(self, units: tuple[Unit, ...], lang: str) -> list[str]:
        turned = self.languages[lang].turned
        ordered = [unit[::-1] if turned and len(unit) == 2 else unit for unit in units]
        return [self._lexicon[lang][word] for unit in ordered for word in unit]

    def _sentence(self, phrases: Phrases, lang: str, statement: bool) -> str:
        tongue, words = self.languages[lang], []
        for role in (tongue.statement if statement else tongue.question).split():
            words += self._say(phrases.get(role, ()), lang)
            if role == "subj" and tongue.marker:
                words.append(self._lexicon[lang]["<case>"])
        return " ".join(words)

    def prompt(self, question: Question, lang: str) -> str:
        return self._sentence(question.phrases, lang, statement=False)

    def answer(self, question: Question, lang: str) -> str:
        return " ".join(self._say(question.answer, ENGLISH if self.answers_alike else lang))

    def statement(self, question: Question, lang: str) -> str:
        roles = {**question.phrases, "verb": (("is",),), "val": question.answer, "end": ((".",),)}
        return self._sentence(roles, lang, statement=True)

    # -- what the lab asks for ---------------------------------------------------------------------------------------

    def vocabulary(self, lang: str) -> list[str]:
        """Every word of the language."""
        return list(self._lexicon[lang].values())

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Word of another language -> language -> the English word it is made from."""
        return {
            word: {lang: {english} if english in self._lexicon[ENGLISH] else set()}
            for lang, words in self._lexicon.items()
            if lang != ENGLISH
            for english, word in words.items()
        }

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """A word list, then questions as statements and with their answers."""
        lines = [" ".join(self._say((("word",), (":",), unit), lang)) for unit in self._list]
        asked = (
            [*itertools.chain(*self.splits.values()), *self._drill]
            if lang == ENGLISH
            else self._share(lang, share, seed)
        )
        for question in asked:
            lines += [self.statement(question, lang), f"{self.prompt(question, lang)} {self.answer(question, lang)}"]
        return lines

    def parallel_text(self, lang: str, share: float, seed: int) -> list[str]:
        """`English : other` for every statement of the same share."""
        colon = self._lexicon[ENGLISH][":"]
        return [
            f"{self.statement(question, ENGLISH)} {colon} {self.statement(question, lang)}"
            for question in self._share(lang, share, seed)
        ]

    def switched_text(self, lang: str, share: float, seed: int) -> list[str]:
        """English statements of the same share, each word said in the other language at the toss of a coin."""
        rng, lexicon = random.Random(f"{seed} {lang} switched"), self._lexicon[lang]
        return [
            " ".join(lexicon[word] if rng.random() < 0.5 else word for word in self.statement(one, ENGLISH).split())
            for one in self._share(lang, share, seed)
        ]

    def _share(self, lang: str, share: float, seed: int) -> list[Question]:
        readable = [self.splits["text"]] if self.english_only else list(self.splits.values())
        questions = list(itertools.chain(*readable))
        random.Random(f"{seed} {lang}").shuffle(questions)
        return questions[: round(share * sum(map(len, self.splits.values())))]

    def row(self, item: Item) -> dict[str, str]:
        """A training row."""
        return {"prompt": item.prompt, "response": " " + item.answer, "lang": item.lang, "prompt_en": item.prompt_en}

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language."""
        return [
            Item(one.key, one.task, lang, self.prompt(one, lang), self.prompt(one, ENGLISH), self.answer(one, lang))
            for one in self.splits[split]
        ]


def _coiner(rng: random.Random, taken: set[str]) -> Callable[[], str]:
    """A function that gives a new pronounceable word at each call."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"

    def coin() -> str:
        while True:
            word = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.choice((2, 3, 3))))
            if word not in taken:
                taken.add(word)
                return word

    return coin


def _asked(wh: str, verb: str, obj: Unit, link: str, subj: tuple[Unit, ...]) -> Phrases:
    return {"wh": ((wh,),), "verb": ((verb,),), "obj": (obj,), "link": ((link,),), "subj": subj, "end": (("?",),)}


def _people(rng: random.Random, sizes: Sizes) -> tuple[list[Question], list[Question], list[Unit]]:
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
    questions = []
    for name, (relation, answers) in itertools.product(names, of.items()):
        phrases = _asked("what", "is", ("the", relation), "of", (name,))
        questions.append(Question(f"{relation} {' '.join(name)}", relation, phrases, (answers[name],)))
    for name in names:
        phrases = _asked("what", "is", ("the", "trade", "of", "the", "mentor"), "of", (name,))
        questions.append(Question(f"hop {' '.join(name)}", "hop", phrases, (of["trade"][of["mentor"][name]],)))
    return questions, [], [*names, *places, *trades]


def _number(value: int) -> Unit:
    if value < 20:
        return (_NUMBERS[value],)
    return (_TENS[value // 10 - 2], *([_NUMBERS[value % 10]] if value % 10 else []))


def _all_sums(below: int) -> Iterator[Question]:
    for a, b in itertools.product(range(below), repeat=2):
        phrases = _asked("what", "is", _number(a), "plus", (_number(b),))
        yield Question(f"{a}+{b}", "sum", phrases, (_number(a + b),))


def _sums(rng: random.Random, sizes: Sizes) -> tuple[list[Question], list[Question], list[Unit]]:
    return list(_all_sums(sizes.addends)), [], [_number(value) for value in range(2 * sizes.addends)]


def _skills(rng: random.Random, sizes: Sizes) -> tuple[list[Question], list[Question], list[Unit]]:
    coin = _coiner(rng, {*_NUMBERS, *_TENS})
    topics = {coin(): [coin() for _ in range(24)] for _ in range(5)}

    def sorts() -> Iterator[Question]:
        for three in itertools.permutations(range(20), 3):
            phrases = _asked("what", "is", ("order",), "of", tuple(map(_number, three)))
            yield Question(f"sort {three}", "sort", phrases, tuple(map(_number, sorted(three))))

    def larger() -> Iterator[Question]:
        for a, b in itertools.permutations(range(60), 2):
            phrases = _asked("whether", "is", _number(a), "above", (_number(b),))
            yield Question(f"{a}>{b}", "larger", phrases, (("yes" if a > b else "no",),))

    def kinds() -> Iterator[Question]:
        words = [(word, topic) for topic, group in topics.items() for word in group]
        for _ in range(4 * (sizes.skills + sizes.drill)):
            topic = rng.choice(list(topics))
            three = [*rng.sample([w for w, t in words if t == topic], 2), rng.choice(words)[0]]
            rng.shuffle(three)
            phrases = _asked("what", "is", ("topic",), "of", tuple((word,) for word in three))
            yield Question(f"topic {' '.join(three)}", "topic", phrases, ((topic,),))

    questions, drill = [], []
    for task in (_all_sums(30), sorts(), larger(), kinds()):
        every = list({question.key: question for question in task}.values())
        rng.shuffle(every)
        questions += every[: sizes.skills]
        drill += every[sizes.skills : sizes.skills + sizes.drill]
    words: list[Unit] = [(word,) for group in topics.values() for word in group]
    return questions, drill, [*words, *map(_number, range(80))]
