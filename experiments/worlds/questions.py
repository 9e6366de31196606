"""What controlled worlds ask, before any language says it: questions in roles, by kind, and how they are split.

- `facts`: invented people with a home (two words), a trade (one), a mentor (two, one of the people), and the trade of
  a mentor (two hops).
- `things`: invented things of a kind and a size. Both (two words), the kind among four that are named (multiple
  choice), the largest of three (a choice between names of two words). Splits are by thing: what is asked in `test` is
  about things of which no other split says anything.
- `sums`: sums of number words alone, in full: what is left to transfer when plain SFT has closed the other skills.
- `skills`: sums of number words (answers of one or two words), sorting three numbers (three words), which of two is
  larger (yes or no), and the topic of three words (one of five).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Unit = tuple[str, ...]  # words that belong together: a name, a number
Phrases = Mapping[str, tuple[Unit, ...]]  # role -> units

SPLITS = ("sft", "dev", "test", "free")  # in the order they are cut; what remains is `text`

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
class Question:
    """A question in roles, and its answer as units; `choices` as in `worlds.Item`."""

    key: str
    task: str
    phrases: Phrases
    answer: tuple[Unit, ...]
    choices: int = 0


@dataclass(frozen=True)
class Sizes:
    """How many questions there are, and how many of them each split takes; the rest is `text`."""

    people: int = 300
    things: int = 400
    addends: int = 36  # of `sums`: 0 to 35
    skills: int = 300  # of each of the four kinds
    drill: int = 1200  # more of each, which English alone reads; of `things` half as many
    sft: int = 168
    dev: int = 168
    test: int = 240
    free: int = 168


@dataclass(frozen=True)
class Questions:
    """Everything that can be asked in a world.

    Attributes:
        splits: `sft`, `dev`, `test`, `free` and, with all the others, `text`. drill: more, which English alone reads.
        words: what the word lists name.
    """

    splits: dict[str, list[Question]]
    drill: list[Question]
    words: list[Unit]


def ask(kind: str, rng: random.Random, sizes: Sizes) -> Questions:
    """The questions of a world of that kind."""
    return {"facts": _facts, "things": _things, "sums": _sums, "skills": _skills}[kind](rng, sizes)


def _split(rng: random.Random, questions: list[Question], sizes: Sizes) -> dict[str, list[Question]]:
    rng.shuffle(questions)
    splits, start = {}, 0
    for split in SPLITS:
        stop = start + getattr(sizes, split)
        splits[split] = questions[start:stop]
        start = stop
    return splits | {"text": questions[start:]}


def coiner(rng: random.Random, taken: set[str]) -> Callable[[], str]:
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


def _facts(rng: random.Random, sizes: Sizes) -> Questions:
    coin = coiner(rng, set())
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
    return Questions(_split(rng, questions, sizes), [], [*names, *places, *trades])


def _things(rng: random.Random, sizes: Sizes) -> Questions:
    coin = coiner(rng, set())
    first, last = [coin() for _ in range(40)], [coin() for _ in range(40)]
    names: list[Unit] = rng.sample(list(itertools.product(first, last)), sizes.things)
    kinds: list[Unit] = [(coin(),) for _ in range(12)]
    ranks: list[Unit] = [(coin(),) for _ in range(10)]
    kind = {name: rng.choice(kinds) for name in names}
    size = {name: rng.randrange(len(ranks)) for name in names}

    def largest(group: Sequence[Unit]) -> Question:
        three = rng.sample(group, 3)
        *_, second, first = sorted(three, key=size.__getitem__)
        if size[second] == size[first]:
            return largest(group)
        asked = _asked("what", "is", ("the", "largest"), "of", tuple(three))
        return Question(" ".join(["largest", *itertools.chain(*three)]), "largest", asked, (first,), len(three))

    def described(name: Unit) -> Question:
        asked = _asked("what", "is", ("the", "kind", "and", "size"), "of", (name,))
        return Question(f"describe {' '.join(name)}", "describe", asked, (kind[name], ranks[size[name]]))

    def chosen(name: Unit) -> Question:
        options = [kind[name], *rng.sample([one for one in kinds if one != kind[name]], 3)]
        rng.shuffle(options)
        asked = _asked("what", "is", ("the", "kind"), "of", (name, ("among",), *options))
        return Question(f"choose {' '.join(name)}", "choose", asked, (kind[name],), len(options))

    splits, start = {}, 0
    for split in (*SPLITS, "text"):
        group = names[start : start + getattr(sizes, split) // 3] if split in SPLITS else names[start:]
        start += len(group)
        of_three: dict[str, Question] = {}
        while len(of_three) < len(group):
            one = largest(group)
            of_three[one.key] = one
        splits[split] = [*map(described, group), *map(chosen, group), *of_three.values()]
        rng.shuffle(splits[split])
    drill = [largest(names) for _ in range(sizes.drill // 2)]
    return Questions(splits, drill, [*names, *kinds, *ranks])


def _number(value: int) -> Unit:
    if value < 20:
        return (_NUMBERS[value],)
    return (_TENS[value // 10 - 2], *([_NUMBERS[value % 10]] if value % 10 else []))


def _all_sums(below: int) -> Iterator[Question]:
    for a, b in itertools.product(range(below), repeat=2):
        phrases = _asked("what", "is", _number(a), "plus", (_number(b),))
        yield Question(f"{a}+{b}", "sum", phrases, (_number(a + b),))


def _sums(rng: random.Random, sizes: Sizes) -> Questions:
    words = [_number(value) for value in range(2 * sizes.addends)]
    return Questions(_split(rng, list(_all_sums(sizes.addends)), sizes), [], words)


def _skills(rng: random.Random, sizes: Sizes) -> Questions:
    coin = coiner(rng, {*_NUMBERS, *_TENS})
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
    return Questions(_split(rng, questions, sizes), drill, [*words, *map(_number, range(80))])
