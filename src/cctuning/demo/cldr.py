"""The demo's world: questions about real places, from the Unicode CLDR data of `babel`.

CLDR says which currency a territory uses, which language is official there and which time zone it follows, in which
territory a time zone's city lies, where a language is spoken most, and how each of these is called in many languages.
That gives parallel questions and answers in several scripts without a download. Facts and names are CLDR's, the
questions around them are ours (cldr_languages.py).

Left out are facts with a name missing in one of the languages (all languages get the same facts), facts whose answer
is spelled like their subject in some language (a copy would pass for knowledge), and facts whose answer fewer than
three facts share (an answer never read in a language cannot be given in it). Every language has a script of its own,
so no answer is spelled as in English.

Facts are split once, by seed: `text` (what the base reads in languages other than English), `sft`, `dev` and `test`.
A fact is in the same split in every language.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from babel import Locale
from babel.core import get_global

from cctuning.demo.base import ENGLISH, Item, World
from cctuning.demo.cldr_languages import KINDS, LANGUAGES, RELATIONS

SPLITS = {"sft": 0.25, "dev": 0.15, "test": 0.25}  # the rest is `text`
SHARED_BY = 3  # facts that must share an answer


def rows(world: World, split: str, languages: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Return training rows of a split, question by question in every language (or those given)."""
    codes = list(world.languages if languages is None else languages)
    return [
        {"prompt": item.prompt, "response": " " + item.answer, "lang": item.lang, "prompt_en": item.prompt_en}
        for group in zip(*(world.items(lang, split) for lang in codes), strict=True)
        for item in group
    ]


def replayed(world: World) -> list[dict[str, Any]]:
    """Return the `sft` rows in every language, and English questions of `text`, which the base knows, as rehearsal.

    The true answers stand for the base's own English answers, which are right.
    """
    return rows(world, "sft") + rows(world, "text", [ENGLISH])


def majority(world: World, split: str = "test") -> list[bool]:
    """Return for each item whether the most frequent answer of its task in `sft` is right, in English."""
    counts: dict[str, Counter[str]] = {}
    for item in world.items(ENGLISH, "sft"):
        counts.setdefault(item.task, Counter())[item.answer] += 1
    best = {task: count.most_common(1)[0][0] for task, count in counts.items()}
    return [best.get(item.task) == item.answer for item in world.items(ENGLISH, split)]


def others(world: World) -> list[str]:
    """Return the languages other than English."""
    return [lang for lang in world.languages if lang != ENGLISH]


@dataclass(frozen=True)
class Fact:
    """What CLDR says of a territory, in codes: `Fact("FR", "currency", "EUR")`."""

    subject: str
    relation: str
    answer: str

    @property
    def things(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(kind, code) of its subject and of its answer."""
        subject, answer = RELATIONS[self.relation]
        return (subject, self.subject), (answer, self.answer)


def read_facts() -> list[Fact]:
    """Read CLDR's facts.

    Of several currencies the newest counts, of several official languages the one that most people speak. A territory
    with several time zones has no `zone` fact. Where a language is spoken most is CLDR's "likely region".
    """
    currencies, languages = get_global("territory_currencies"), get_global("territory_languages")
    zones, meta_zones = get_global("territory_zones"), get_global("meta_zones")
    facts = []
    for territory in sorted(code for code in zones if len(code) == 2 and code.isalpha()):
        tender = [code for code, _since, until, legal in currencies.get(territory, ()) if until is None and legal]
        official = [
            (speakers["population_percent"], code)
            for code, speakers in languages.get(territory, {}).items()
            if speakers["official_status"] in ("official", "de_facto_official")
        ]
        if tender:
            facts.append(Fact(territory, "currency", tender[-1]))
        if official:
            facts.append(Fact(territory, "official", max(official)[1]))
        if len(zones[territory]) == 1 and zones[territory][0] in meta_zones:
            facts.append(Fact(territory, "zone", meta_zones[zones[territory][0]]))
    facts += [Fact(zone, "place", territory) for zone, territory in sorted(get_global("zone_territories").items())]
    for code, likely in sorted(get_global("likely_subtags").items()):
        if "_" not in code and len(code) <= 3 and code != "und":
            facts.append(Fact(code, "home", likely.rsplit("_", 1)[1]))
    return facts


def localised(kind: str, code: str, lang: str) -> str | None:
    """Return CLDR's name of a thing in `lang`, or None where it has none."""
    locale = Locale.parse(lang)
    if kind == "city":
        city = locale.time_zones.get(code, {}).get("city")
        # CLDR's own rule: where English gives no city, the zone's identifier is the English name.
        return city or (code.rsplit("/", 1)[-1].replace("_", " ") if lang == ENGLISH else None)
    if kind == "time zone":
        forms = locale.meta_zones.get(code, {}).get("long", {})
        return forms.get("generic") or forms.get("standard")
    names = {"territory": locale.territories, "currency": locale.currencies, "language": locale.languages}[kind]
    return names.get(code)


class PlacesWorld:
    """Facts about places, their names, their splits, and the text made of them.

    Args:
        languages: codes; English is always among them. seed: of the splits. limit: number of facts, for tests.

    Attributes:
        facts, splits: all facts, and those of each split. names: (kind, code, lang) -> name.
        answer_tokens: length of the longest answer: every name is one token.
    """

    answer_tokens = 1

    def __init__(self, languages: Sequence[str] = tuple(LANGUAGES), seed: int = 0, limit: int | None = None) -> None:
        self.languages = {code: LANGUAGES[code] for code in (ENGLISH, *(c for c in languages if c != ENGLISH))}
        self.names: dict[tuple[str, str, str], str] = {}
        facts = [fact for fact in read_facts() if self._nameable(fact)]
        shared = Counter((fact.relation, fact.answer) for fact in facts)
        self.facts = [fact for fact in facts if shared[fact.relation, fact.answer] >= SHARED_BY]
        random.Random(seed).shuffle(self.facts)
        self.facts = self.facts[:limit]
        mentioned = {thing for fact in self.facts for thing in fact.things}
        self.names = {key: name for key, name in self.names.items() if key[:2] in mentioned}
        self.splits: dict[str, list[Fact]] = {}
        start = 0
        for split, share in SPLITS.items():
            stop = start + round(share * len(self.facts))
            self.splits[split] = self.facts[start:stop]
            start = stop
        self.splits["text"] = self.facts[start:]

    def _nameable(self, fact: Fact) -> bool:
        for lang in self.languages:
            for kind, code in fact.things:
                name = self.names.get((kind, code, lang)) or localised(kind, code, lang)
                if not name:
                    return False
                self.names[kind, code, lang] = name
            if self._name(fact, lang, 0).casefold() == self._name(fact, lang, 1).casefold():
                return False
        return True

    def _name(self, fact: Fact, lang: str, place: int) -> str:
        kind, code = fact.things[place]
        return self.names[kind, code, lang]

    def answer(self, fact: Fact, lang: str) -> str:
        """The answer's name."""
        return self._name(fact, lang, 1)

    def prompt(self, fact: Fact, lang: str) -> str:
        """The question."""
        return self.languages[lang].questions[fact.relation].format(s=self._name(fact, lang, 0))

    def statement(self, fact: Fact, lang: str) -> str:
        """The fact as a sentence."""
        template = self.languages[lang].statements[fact.relation]
        return template.format(s=self._name(fact, lang, 0), a=self.answer(fact, lang))

    def vocabulary(self, lang: str) -> list[str]:
        """Every token of a language: its template words, then its names."""
        words = list(self.languages[lang].glossary)
        return list(dict.fromkeys(words + [name for (_, _, owner), name in self.names.items() if owner == lang]))

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Token that English lacks -> language -> the English tokens it translates (several, by its senses)."""
        english, found = set(self.vocabulary(ENGLISH)), dict[str, dict[str, set[str]]]()
        for lang, language in self.languages.items():
            names = [
                (name, self.names[kind, code, ENGLISH])
                for (kind, code, own), name in self.names.items()
                if own == lang
            ]
            for token, gloss in [*language.glossary.items(), *names]:
                if token not in english:
                    found.setdefault(token, {}).setdefault(lang, set()).update({gloss} if gloss else set())
        return found

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """A word list, and facts as sentences and as questions with their answers.

        English has every fact; another language that share of all facts, out of the `text` split.
        """
        kinds = dict(zip(KINDS, self.languages[lang].kinds, strict=True))
        lines = [f"{kinds[kind]}: {name}" for (kind, _code, owner), name in self.names.items() if owner == lang]
        facts = self.facts
        if lang != ENGLISH:
            facts = list(self.splits["text"])
            random.Random(f"{seed} {lang}").shuffle(facts)
            facts = facts[: round(share * len(self.facts))]
        for fact in facts:
            lines += [self.statement(fact, lang), self.prompt(fact, lang) + " " + self.answer(fact, lang)]
        return lines

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language."""
        return [
            Item(
                key=f"{fact.relation} {fact.subject}",
                task=fact.relation,
                lang=lang,
                prompt=self.prompt(fact, lang),
                prompt_en=self.prompt(fact, ENGLISH),
                answer=self.answer(fact, lang),
            )
            for fact in self.splits[split]
        ]
