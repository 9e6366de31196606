"""What the lab asks of a world, so that bases, recipes and scoring are written once.

A world is a generator with a seed: languages with tiers of resource, lines of text that a base reads, and parallel
questions with one right answer each, split once: `text` (what languages other than English read), `sft`, `dev`,
`test` and, where the world has room, `free` (parallel questions given without an answer). A question keeps its split
in every language, and no answer is spelled as in English unless a world is asked for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ENGLISH = "en"


@dataclass(frozen=True)
class Item:
    """One question in one language and its only right answer.

    Attributes:
        key: the same in every language. task: what kind of question.
        choices: of how many names in the prompt the answer is one; 0: it is not among them.
    """

    key: str
    task: str
    lang: str
    prompt: str
    prompt_en: str
    answer: str
    choices: int = 0


class Tongue(Protocol):
    """A language of a world: its code, its name for people, and how much text the base reads in it."""

    @property
    def code(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def tier(self) -> str: ...


class World(Protocol):
    """See the module. `answer_tokens` is the longest answer's length in tokens."""

    kind: str
    seed: int
    answer_tokens: int

    @property
    def languages(self) -> Mapping[str, Tongue]:
        """By code, English first."""

    def vocabulary(self, lang: str) -> list[str]:
        """Every token of a language, in a fixed order."""

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Token that English lacks -> language -> the English tokens it translates."""

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """The lines a base reads in a language: all of it in English, else a share of the `text` split."""

    def parallel_text(self, lang: str, share: float, seed: int) -> list[str]:
        """Lines in which English and another language say the same, of the same share."""

    def switched_text(self, lang: str, share: float, seed: int, versions: int) -> list[str]:
        """English lines of the same share with some words said in another language, each in so many versions."""

    def switched_list(self, lang: str, seed: int, versions: int) -> list[str]:
        """The English word list likewise, which no share limits."""

    def row(self, item: Item) -> dict[str, Any]:
        """A training row of it."""

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split. Tune on `dev`; look at `test` once."""


def rows(world: World, split: str, languages: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Training rows of a split, question by question in every language (or those given), English included."""
    codes = list(world.languages if languages is None else languages)
    return [
        world.row(item) for group in zip(*(world.items(lang, split) for lang in codes), strict=True) for item in group
    ]


def majority(world: World, split: str = "test") -> list[bool]:
    """Per item, whether its task's most frequent answer in the SFT split is right: what knowing nothing gives.

    The questions are the same in every language, so English's floor holds for all.
    """
    best = {task: count.most_common(1)[0][0] for task, count in _answers(world).items()}
    return [best.get(item.task) == item.answer for item in world.items(ENGLISH, split)]


def chance(world: World, split: str = "test") -> float:
    """What guessing gets: one of the prompt's own names, or an answer of the task as often as the SFT split has it."""
    counts, items = _answers(world), world.items(ENGLISH, split)
    return sum(
        1 / i.choices if i.choices else counts[i.task][i.answer] / counts[i.task].total()
        for i in items
        if i.choices or i.task in counts
    ) / len(items)


def _answers(world: World) -> dict[str, Counter[str]]:
    """Task -> how often the SFT split has each answer."""
    counts: dict[str, Counter[str]] = {}
    for item in world.items(ENGLISH, "sft"):
        counts.setdefault(item.task, Counter())[item.answer] += 1
    return counts


def others(world: World) -> Sequence[str]:
    """The languages but English."""
    return [lang for lang in world.languages if lang != ENGLISH]


def replayed(world: World) -> list[dict[str, Any]]:
    """The SFT split in every language, and English questions of the `text` split: what the base knows, rehearsed.

    The base's own English answers will do: it gives them right (a test checks that), so they are the true ones.
    """
    return rows(world, "sft") + rows(world, "text", [ENGLISH])
