"""Find languages by their names in CLDR: in English or in the language itself, with a region or script in brackets."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from babel import Locale, localedata

# Names in data sets that are not CLDR's own
NAMES = {
    "farsi": "fa",
    "mandarin": "zh",
    "mandarin chinese": "zh",
    "bokmål": "no",
    "castilian": "es",
    "flemish": "nl-BE",
    "chichewa": "ny",
    "norsk bokmål": "no",
    "norsk nynorsk": "nn",
    "bahasa indonesia": "id",
    "bahasa melayu": "ms",
    "हिंदी": "hi",
    "ภาษาไทย": "th",
    "o‘zbekcha": "uz",
}
NAMES |= {"modern standard arabic": "ar", "standard malay": "ms", "serbian latin": "sr-Latn", "serbian cyrillic": "sr"}
REGIONS = {
    "hong kong": "HK",
    "香港": "HK",
    "macau": "MO",
    "澳门": "MO",
    "澳門": "MO",
    "臺灣": "TW",
    "usa": "US",
}  # likewise


def words_of(name: str) -> str:
    """A name without case, accents, word order and punctuation: `Chinese (Simplified)` equals `simplified_chinese`."""
    name = unicodedata.normalize("NFKD", name.casefold())
    name = re.sub("[\u0300-\u036f]", "", name)  # marks of other scripts are vowels
    words = re.split(r"[\s_(),;/'’‘ʻʼ-]+", re.sub(r"\((individual language|macrolanguage)\)", "", name))
    return " ".join(sorted(filter(None, words)))


def named(name: str) -> list[str]:
    """The codes of the languages with this name, in English or in the language; more than one where it is ambiguous.

    Regions and scripts may follow in brackets: `Spanish (Mexico)`, `español (México)`.
    """
    key = words_of(name)
    if code := english_names().get(key):
        return [code]
    found = _own_names().get(key, [])
    beside = re.fullmatch(r"([^()（）]+)[(（]([^()（）]+)[)）]", name.strip())
    if found or not beside:
        return found
    codes = []
    for code in named(beside[1]):
        details = [_detail(code, words_of(part)) for part in re.split("[,،、]", beside[2])]
        codes += ["-".join([code, *map(str, details)])] if all(details) else []
    return codes


def _detail(code: str, name: str) -> str | None:
    """The region or script with a name in English or in the language `code`, or with a code of two letters."""
    if name in REGIONS or re.fullmatch("[a-z]{2}", name):
        return REGIONS.get(name, name)
    language = re.split("[-_]", code)[0]
    for identifier in ("en", *(one for one in _locales() if one.split("_")[0] == language)):
        locale = Locale.parse(identifier)
        for names in (locale.territories, locale.scripts):
            found = next((part for part, called in names.items() if words_of(str(called)) == name), None)
            if found:
                return str(found)
    return None


@cache
def english_names() -> dict[str, str]:
    """English names, normalised by `_words`, to codes."""
    own = {words_of(name): code for name, code in NAMES.items()}
    return {words_of(str(name)): code for code, name in Locale("en").languages.items()} | own


def _locales() -> list[str]:
    """CLDR's locales of a language, or of a language in a script."""
    return [one for one in localedata.locale_identifiers() if re.fullmatch("[a-z]+(_[A-Z][a-z]{3})?", one)]


@cache
def _own_names() -> dict[str, list[str]]:
    """Names of languages in themselves, normalised by `_words`, to codes."""
    found: dict[str, dict[str, str]] = {}  # name to language to code
    for identifier in sorted(_locales(), key=len):  # the language before the language in a script
        known = identifier in localedata._cache
        names = localedata.load(identifier, merge_inherited=False).get("languages", {})
        if not known:
            localedata._cache.pop(identifier, None)  # all of them would take 150 MB
        language = identifier.split("_")[0]
        for code, name in names.items():
            if code.split("_")[0] == language:
                found.setdefault(words_of(name), {}).setdefault(language, identifier if code == language else code)
    return {name: [*codes.values()] for name, codes in found.items()}
