"""Controlled worlds: languages made from English, with what a transfer can depend on as knobs.

A sentence is a handful of phrases with roles (question word, verb, object, link, subject, value). A language says it
with words of its own (a bijection of the vocabulary: no word is shared), in its own order of phrases, with a case
marker that English lacks, or with the parts of a name or number turned round. So everything a language and English
have in common is the concepts, and how well a base shares those is the base's knob (`keep`, base.py).

What is asked is questions.py's.

Nothing here is a language; codes are those that ISO 639 reserves for local use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cctuning.demo.worlds import ENGLISH, Item
from experiments.worlds.questions import Phrases, Question, Sizes, Unit, ask, coiner


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


class ControlledWorld:
    """The questions, their splits and how each language says them.

    Args:
        kind: `facts`, `things`, `sums` or `skills` (questions.py). seed: of names, answers, words and splits.
        sizes: as in `Sizes`.
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
        asked = ask(kind, rng, sizes)
        self.splits, self._drill, self._list = asked.splits, asked.drill, asked.words
        every = itertools.chain(*self.splits.values())
        self.answer_tokens = max(sum(map(len, question.answer)) for question in every)
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
        coin = coiner(rng, set(words))
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
        lines = self._words_of(lang)
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

    def switched_text(self, lang: str, share: float, seed: int, versions: int) -> list[str]:
        """English statements and answered questions of the same share, with words of the other language."""
        told = [
            line
            for one in self._share(lang, share, seed) * versions
            for line in (self.statement(one, ENGLISH), f"{self.prompt(one, ENGLISH)} {self.answer(one, ENGLISH)}")
        ]
        return self._switched(told, lang, random.Random(f"{seed} {lang} switched"))

    def switched_list(self, lang: str, seed: int, versions: int) -> list[str]:
        """The English word list with words of the other language."""
        return self._switched(self._words_of(ENGLISH) * versions, lang, random.Random(f"{seed} {lang} switched list"))

    def _switched(self, english: Sequence[str], lang: str, rng: random.Random) -> list[str]:
        lexicon, lines = self._lexicon[lang], []
        for line in english:
            chance = rng.random()  # from nearly all English to nearly none
            lines.append(" ".join(lexicon[word] if rng.random() < chance else word for word in line.split()))
        return lines

    def _words_of(self, lang: str) -> list[str]:
        return [" ".join(self._say((("word",), (":",), unit), lang)) for unit in self._list]

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
            Item(
                key=one.key,
                task=one.task,
                lang=lang,
                prompt=self.prompt(one, lang),
                prompt_en=self.prompt(one, ENGLISH),
                answer=self.answer(one, lang),
                choices=one.choices,
            )
            for one in self.splits[split]
        ]
