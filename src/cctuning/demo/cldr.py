"""The demo's world, and one of 22 languages: questions about real places, from the Unicode CLDR data of `babel`.

CLDR says of a territory which currency it uses, which language is official and which time zone it follows, of a zone's
city which territory it lies in, of a language where it is at home, and how each of these is called in hundreds of
languages. That makes parallel question/answer rows in several scripts without a download: the facts and every name are
CLDR's, the questions around them are ours.

What is left out, and why: facts with a name missing in one of the languages (all languages get the same facts), facts
whose answer is spelled like their subject in some language (a copy would pass for knowledge), and facts whose answer
fewer than three facts share (a name that a language never had to say cannot be said in it). Each language has a script
of its own, so no answer is spelled as in English and no name is shared; `World` checks that. The demo speaks seven
languages (856 facts); `LANGUAGES` has all 22 (820 facts).

Facts are split once, by seed: `text` (what the base reads in languages other than English), `sft`, `dev` and `test`.
A fact keeps its split in every language.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from babel import Locale
from babel.core import get_global

from cctuning.demo.cldr_languages import KINDS, RELATIONS, SEVEN
from cctuning.demo.cldr_languages_more import FIFTEEN
from cctuning.demo.worlds import ENGLISH, Item

LANGUAGES = SEVEN | FIFTEEN
SPLITS = {"sft": 0.25, "dev": 0.15, "test": 0.25}  # what remains is `text`
SHARED_BY = 3  # an answer counts if so many facts share it: one never heard in a language cannot be given in it


@dataclass(frozen=True)
class Fact:
    """What CLDR says of a territory, in codes: `Fact("FR", "currency", "EUR")`."""

    subject: str
    relation: str
    answer: str


def read_facts() -> list[Fact]:
    """What CLDR says, in codes.

    Of several tenders the newest counts, of several official languages the one most people speak. A territory of
    several time zones has no single answer and is left out of that relation. Where a language is at home is CLDR's
    "likely region".
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
    """What `lang` calls a thing, from CLDR; None where CLDR has no name for it."""
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


class World:
    """The facts, their names, their splits, and the rows made of them.

    Attributes:
        languages: by code, English first.
        facts: all of them.
        splits: `text`, `sft`, `dev`, `test`: disjoint lists of facts.
        names: (kind, code, lang) to the name, for everything the facts mention.
    """

    kind = "cldr"
    answer_tokens = 1  # every name is one token

    def __init__(self, languages: Iterable[str], seed: int, limit: int | None = None) -> None:
        codes = [ENGLISH, *(code for code in languages if code != ENGLISH)]
        unknown = [code for code in codes if code not in LANGUAGES]
        if unknown:
            raise ValueError(f"languages: no templates for {', '.join(unknown)}; choose among {', '.join(LANGUAGES)}")
        self.languages = {code: LANGUAGES[code] for code in codes}
        self.seed = seed
        self.names: dict[tuple[str, str, str], str] = {}
        facts = [fact for fact in read_facts() if self._nameable(fact)]
        shared = Counter((fact.relation, fact.answer) for fact in facts)
        self.facts = [fact for fact in facts if shared[fact.relation, fact.answer] >= SHARED_BY]
        rng = random.Random(seed)
        rng.shuffle(self.facts)
        self.facts = self.facts[:limit]
        mentioned = {thing for fact in self.facts for thing in _things(fact)}
        self.names = {key: name for key, name in self.names.items() if key[:2] in mentioned}
        self._check_scripts()
        self.splits: dict[str, list[Fact]] = {}
        start = 0
        for split, share in SPLITS.items():
            stop = start + round(share * len(self.facts))
            self.splits[split] = self.facts[start:stop]
            start = stop
        self.splits["text"] = self.facts[start:]

    def _nameable(self, fact: Fact) -> bool:
        for lang in self.languages:
            for kind, code in _things(fact):
                name = self.names.get((kind, code, lang)) or localised(kind, code, lang)
                if not name:
                    return False
                self.names[kind, code, lang] = name
            subject, answer = (self.names[kind, code, lang].casefold() for kind, code in _things(fact))
            if subject == answer:
                return False
        return True

    def _check_scripts(self) -> None:
        owners: dict[str, set[str]] = {}
        for (_kind, _code, lang), name in self.names.items():
            owners.setdefault(name, set()).add(lang)
        shared = sorted(name for name, langs in owners.items() if len(langs) > 1)
        if shared:
            raise ValueError(f"names: {len(shared)} are spelled alike in two languages, among them {shared[:5]}")

    def name(self, kind: str, code: str, lang: str) -> str:
        return self.names[kind, code, lang]

    def subject(self, fact: Fact, lang: str) -> str:
        return self.name(RELATIONS[fact.relation][0], fact.subject, lang)

    def answer(self, fact: Fact, lang: str) -> str:
        return self.name(RELATIONS[fact.relation][1], fact.answer, lang)

    def prompt(self, fact: Fact, lang: str) -> str:
        return self.languages[lang].questions[fact.relation].format(s=self.subject(fact, lang))

    def statement(self, fact: Fact, lang: str) -> str:
        template = self.languages[lang].statements[fact.relation]
        return template.format(s=self.subject(fact, lang), a=self.answer(fact, lang))

    def entries(self, lang: str) -> list[str]:
        """A word list of the language: `territory: France`, for every name and nothing that answers a question."""
        kinds = dict(zip(KINDS, self.languages[lang].kinds, strict=True))
        return [f"{kinds[kind]}: {name}" for (kind, _code, owner), name in self.names.items() if owner == lang]

    def vocabulary(self, lang: str) -> list[str]:
        """Every token of a language: its template words, then its names."""
        words = list(self.languages[lang].glossary)
        return list(dict.fromkeys(words + [name for (_, _, owner), name in self.names.items() if owner == lang]))

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Token that English lacks -> language -> the English tokens it translates (several, by its senses)."""
        english, found = set(self.vocabulary(ENGLISH)), dict[str, dict[str, set[str]]]()
        for lang, language in self.languages.items():
            names = [
                (name, self.name(kind, code, ENGLISH)) for (kind, code, own), name in self.names.items() if own == lang
            ]
            for token, gloss in [*language.glossary.items(), *names]:
                if token not in english:
                    found.setdefault(token, {}).setdefault(lang, set()).update({gloss} if gloss else set())
        return found

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """The dictionary, and facts as statements and as questions with their answers.

        English reads every fact; another language that share of all facts, out of the `text` split.
        """
        lines = self.entries(lang)
        for fact in self.facts if lang == ENGLISH else self._share(lang, share, seed):
            lines += [self.statement(fact, lang), self.prompt(fact, lang) + " " + self.answer(fact, lang)]
        return lines

    def parallel_text(self, lang: str, share: float, seed: int) -> list[str]:
        """`English : other` for every statement of the same facts."""
        facts = self._share(lang, share, seed)
        return [f"{self.statement(fact, ENGLISH)} : {self.statement(fact, lang)}" for fact in facts]

    def switched_text(self, lang: str, share: float, seed: int, versions: int) -> list[str]:
        """English statements of the same facts, each name said in the other language at the toss of a coin."""
        rng, lines = random.Random(f"{seed} {lang} switched"), []
        for fact in self._share(lang, share, seed) * versions:
            subject, answer = (lang if rng.random() < 0.5 else ENGLISH for _ in range(2))
            template = self.languages[ENGLISH].statements[fact.relation]
            lines.append(template.format(s=self.subject(fact, subject), a=self.answer(fact, answer)))
        return lines

    def switched_list(self, lang: str, seed: int, versions: int) -> list[str]:
        """The English word list, each name said in the other language at the toss of a coin."""
        rng = random.Random(f"{seed} {lang} switched list")
        lines = list(zip(self.entries(ENGLISH), self.entries(lang), strict=True)) * versions
        return [one if rng.random() < 0.5 else f"{one.split(': ')[0]}: {other.split(': ')[1]}" for one, other in lines]

    def _share(self, lang: str, share: float, seed: int) -> list[Fact]:
        facts = list(self.splits["text"])
        random.Random(f"{seed} {lang}").shuffle(facts)
        return facts[: round(share * len(self.facts))]

    def row(self, item: Item) -> dict[str, str]:
        """A training row: prompt + response + the tokenizer's end-of-text token is what a model reads."""
        return {
            "prompt": item.prompt,
            "response": " " + item.answer,
            "lang": item.lang,
            "prompt_en": item.prompt_en,
        }

    def items(self, lang: str, split: str) -> list[Item]:
        """Questions of one language. Tune on `dev`; look at `test` once."""
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


def _things(fact: Fact) -> tuple[tuple[str, str], tuple[str, str]]:
    """What a fact mentions, as (kind, code): its subject and its answer."""
    subject, answer = RELATIONS[fact.relation]
    return (subject, fact.subject), (answer, fact.answer)


def build_world(languages: Iterable[str] = tuple(SEVEN), seed: int = 0, limit: int | None = None) -> World:
    """The world in these languages (English is always in it); `limit` keeps that many facts, for tests."""
    return World(languages, seed, limit)
