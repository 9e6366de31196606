"""Parse, compare and name language codes.

Data sets name languages in many ways: BCP 47 (`sw`, `zh-Hant-TW`), locales (`pt_BR`, `sr_RS@latin`), ISO 639-3 (`swa`,
`swh`), FLORES (`swh_Latn`), English names (`Swahili`), their own names (`Kiswahili`, `español (México)`), old codes
(`iw`). They are parsed with the Unicode CLDR data in babel: aliases of languages and regions, names, and likely
subtags, which give the script of a language (`zh-TW` is `zh-Hant`).

A canonical code is the shortest BCP 47 tag: the language, the script where it is not the usual one, and a region where
one is given that does not follow from the script.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import cache
from typing import NamedTuple

from babel import Locale
from babel.core import get_global

from cctuning.errors import UserError, nearest
from cctuning.language_names import english_names, named, words_of

ENGLISH = "en"  # the default reference language
UNKNOWN = "und"  # ISO 639: undetermined
# Codes that data sets and models use differently from CLDR.
ALIASES = {
    "nb": "no",
    "nob": "no",
    "quy": "qu",
    "pbt": "ps",
    "fuv": "ff",
    "twi": "tw",  # CLDR merges Twi and Akan; NLLB has both
    "tw": "tw",
    "ajp": "ajp",  # likewise South and North Levantine Arabic, and Dari and Persian
    "prs": "prs",
}
LOCALE_SCRIPTS = {"latin": "Latn", "cyrillic": "Cyrl", "devanagari": "Deva", "arabic": "Arab"}  # after @ in a locale
WRITTEN = {"Hang": "Kore", "Hani": "Hans"}  # script code of FLORES to that of CLDR
CODE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})*(?:\.[\w-]+)?(?:@[a-z]+)?")
PRIVATE = re.compile(r"x(?:-[a-z0-9]{1,8})+")
SPECIAL = (UNKNOWN, "mul", "mis", "zxx")  # no language, several, one without a code, no linguistic content


class Tag(NamedTuple):
    """A language, its script (ISO 15924; None where CLDR has none), region and variants."""

    language: str
    script: str | None
    region: str | None
    variants: tuple[str, ...] = ()


@cache
def parse(code: str) -> Tag | None:
    """Parse a code, or a name in English or in the language itself; None where it is neither."""
    code = code.strip()
    if PRIVATE.fullmatch(code.lower()):
        return Tag(code.lower(), None, None)
    if CODE.fullmatch(code):
        found = _of_code(code)
        if found is not None:
            return found
    codes = named(code)
    return _of_code(codes[0]) if len(codes) == 1 else None


def _of_code(code: str) -> Tag | None:
    code, _, modifier = code.partition("@")
    language, *rest = re.split("[-_]", code.partition(".")[0].lower())
    if rest and len(rest[0]) == 3 and rest[0].isalpha() and _known(rest[0]):
        language, *rest = rest  # an extended language: `zh-yue` is Cantonese
    alias = get_global("language_aliases").get(language, language)
    language, *implied = ALIASES.get(language, alias).split("_")  # an alias may have a script or region: `sh`, `cnr`
    if not _known(language):
        return None
    script = region = None
    variants = []
    for part in [*rest, *(part.lower() for part in implied)]:
        if len(part) == 1:
            break  # extensions and private use
        if len(part) == 4 and part.isalpha():
            script = script or WRITTEN.get(part.title(), part.title())
        elif len(part) == 2 or (len(part) == 3 and part.isdigit()):
            region = region or get_global("territory_aliases").get(part.upper(), [part.upper()])[0]
        else:
            variants.append(part)
    script = script or LOCALE_SCRIPTS.get(modifier)
    if script is not None and script not in Locale("en").scripts:
        return None
    region = {("es", "LA"): "419"}.get((language, region or ""), region)  # Latin America, as data sets write it
    region = None if region == "001" else region  # the world
    return Tag(language, script or _script(language, region), region, tuple(variants))


def _known(language: str) -> bool:
    if language in SPECIAL or re.fullmatch("q[a-t][a-z]", language):  # the last are for private use
        return True
    return (
        language in get_global("likely_subtags") or language in Locale("en").languages or language in ALIASES.values()
    )


def _likely(language: str, part: str | None = None) -> list[str]:
    """Language, likely script and likely region from CLDR; empty where it has none."""
    found = get_global("likely_subtags").get(f"{language}_{part}" if part else language)
    return found.split("_") if found and language not in SPECIAL else []


def _script(language: str, region: str | None) -> str | None:
    full = (_likely(language, region) if region else []) or _likely(language)
    return full[1] if full else None


@cache
def _by_region(language: str) -> bool:
    """Whether the script of a language depends on the region, as for Chinese."""
    usual = _script(language, None)
    keys = (key for key in get_global("likely_subtags") if re.fullmatch(rf"{language}_(?:[A-Z]{{2}}|\d{{3}})", key))
    return any(_script(language, key.split("_")[1]) != usual for key in keys)


def is_code(code: str) -> bool:
    """Whether it is the code or the name of a known language."""
    return parse(code) is not None


def tag(code: str, where: str = "") -> Tag:
    """Parse a code or a name; `UserError` for an unknown language, with `where` as the place."""
    found = parse(code)
    if found is None:
        raise UserError(f"{where}{': ' if where else ''}{unknown(code)}")
    return found


def unknown(code: str) -> str:
    """The error message for a code or name that is not that of one known language."""
    if candidates := named(code) or _containing(code):
        names = ", ".join(f"{one.replace('_', '-')} ({language_name(one)})" for one in candidates)
        return f"the language {code!r} is ambiguous: {names}; give its code."
    return (
        f"unknown language {code!r}; expected a code such as sw, zh-Hant or swh_Latn, or a name in English or in the "
        f"language itself.{_hint(code.strip()) or ' A language without a code is written x-NAME.'}"
    )


def _containing(name: str) -> list[str]:
    """The codes of the languages whose English names contain this one, where there are several: `Ndebele`."""
    words = {*words_of(name).split()}
    found = {code for key, code in english_names().items() if words and words < {*key.split()} and "_" not in code}
    return sorted(found) if 1 < len(found) < 8 else []


def _hint(code: str) -> str:
    named = Locale("en").languages
    language = re.split("[-_]", code.lower())[0]
    if len(language) == 2 and language not in named and language[::-1] in named:
        return f" Did you mean {language[::-1]!r}?"
    names = {str(name).casefold(): str(key).replace("_", "-") for key, name in named.items()}
    for near in difflib.get_close_matches(code.casefold(), names, 1):
        return f" Did you mean {names[near]!r} ({near.title()})?"
    return nearest(language, [str(key) for key in named if "_" not in str(key) and key not in SPECIAL])


def canonical(code: str, where: str = "") -> str:
    """The canonical code: `sw` of `swa`, `swh_Latn` and `Swahili`; `zh-Hant` of `zh-TW`; `pt-BR` stays."""
    language, script, region, variants = tag(code, where)
    usual = _script(language, None)
    parts = [language]
    if script != usual and script is not None:
        parts.append(script)
    if region is not None:
        there = (_likely(language, script) if script != usual else []) or _likely(language)
        if not (_by_region(language) and there and there[2] == region):
            parts.append(region)
    return "-".join([*parts, *variants])


def base(code: str) -> str:
    """The language without script and region: `zh` of `zh-Hant-TW`, `sw` of `swh_Latn`."""
    return tag(code).language


def same(one: str, other: str) -> bool:
    """Whether two codes mean the same language and script, in any region: `fr`, `FRA` and `fr_CA` do.

    An unknown code, as files may have, equals only itself.
    """
    found = parse(one), parse(other)
    return one == other if None in found else found[0][:2] == found[1][:2]  # type: ignore[index]


def matches(wanted: str, found: str) -> bool:
    """Whether text in the language `found` fits a request for `wanted`.

    The script must agree: `zh-Hans` accepts `zh-CN` and not `zh-TW`. Regions must agree where both are given: `pt`
    accepts `pt-BR`, and `pt-BR` accepts `pt` but not `pt-PT`.
    """
    one, other = parse(wanted), parse(found)
    if one is None or other is None:
        return wanted == found
    regions = {one.region, other.region} - {None}
    if _by_region(one.language):
        regions = set()  # the region is in the script
    return one[:2] == other[:2] and len(regions) < 2


@cache
def canonical_or_none(name: str) -> str | None:
    """`canonical(name)`, or None where the name is no known language."""
    return canonical(name) if is_code(name) else None


def matching(wanted: str, codes: Collection[str]) -> list[str]:
    """Those of `codes` that mean the language `wanted`: the code itself, else codes that `matches` accepts, else,
    where `wanted` names no script, codes of the same language. `zh-Hans` takes `zh-CN` and never `zh-TW`."""
    if wanted in codes:
        return [wanted]
    found = [code for code in codes if is_code(code) and matches(wanted, code)]
    if found or any(len(part) == 4 and part.isalpha() for part in re.split("[-_]", wanted)[1:]):  # it names a script
        return found
    return [code for code in codes if is_code(code) and base(code) == base(wanted)]


def region_notes(wanted: str, taken: Iterable[str]) -> list[str]:
    """A note where text in the languages `taken`, which `matching` found, is in another region than `wanted`."""
    others = [code for code in dict.fromkeys(taken) if not matches(wanted, code)]
    return [f"no text in {wanted}; {', '.join(others)} is taken."] if others else []


def language_name(code: str) -> str:
    """The English name from CLDR (`Swahili`, `European Portuguese`); the code where there is none."""
    found = parse(code)
    if found is None:
        return code
    language, script, region, _ = found
    names = Locale("en").languages
    if language not in names:
        return str(names.get(get_global("language_aliases").get(language, ""), code))
    for part in (script if script != _script(language, None) else None, region):
        if part and f"{language}_{part}" in names:
            return str(names[f"{language}_{part}"])
    beside = [str(Locale("en").scripts[script])] if script and script != _script(language, None) else []
    if region and f"-{region}" in canonical(code):
        beside.append(str(Locale("en").territories.get(region, region)))
    return f"{names[language]} ({', '.join(beside)})" if beside else str(names[language])
