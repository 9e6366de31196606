"""From a BCP 47 tag to what each family of models calls the language, without a table of our own.

A model's tokenizer lists the codes it knows: `swh_Latn` (NLLB), `__sw__` (M2M100), `<2sw>` (MADLAD), `>>swh<<`
(Opus-MT). Both sides are brought to one form, a language and its script, by the Unicode CLDR data that babel carries:
`swh`, `swa` and `sw` are Swahili in Latin script; `zh-TW` is Chinese in traditional script. The few codes that CLDR
does not merge stand in `_ALSO`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from babel import Locale
from babel.core import get_global

from cctuning.errors import UserError, nearest

_ALSO = {
    "no": "nb",  # Norwegian: Bokmål
    "ns": "nso",  # M2M100's own code of Northern Sotho
    "quy": "qu",
    "pbt": "ps",
    "fuv": "ff",
    "twi": "tw",  # CLDR merges Twi and Akan; NLLB has both
    "tw": "tw",
    "ajp": "ajp",  # likewise South and North Levantine Arabic, and Dari and Persian
    "prs": "prs",
}
_SCRIPTS = {"Hang": "Kore", "Hans": "Hans", "Hant": "Hant"}
# Codes under which Opus-MT published models, where it is not CLDR's shortest
_OPUS = {"nb": "no", "fil": "tl"}
_CODE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")

Form = tuple[str, str | None]  # the language by its shortest code, and its script


def form(tag: str) -> Form | None:
    """A tag's language and script; None if it is not the form of a tag. `sw`, `swa` and `swh_Latn` give the same."""
    if not _CODE.fullmatch(tag):
        return None
    subtags = tag.replace("-", "_").split("_")
    language = subtags[0].lower()
    language = _ALSO.get(language) or get_global("language_aliases").get(language, language)
    language, *rest = language.split("_")  # an alias may carry a script or region of its own: `prs` is `fa_AF`
    rest += subtags[1:]
    script = next((part.title() for part in rest if len(part) == 4 and part.isalpha()), None)
    region = next((part.upper() for part in rest if len(part) in (2, 3)), None)
    if script is None:
        likely = get_global("likely_subtags")
        full = (likely.get(f"{language}_{region}") if region else None) or likely.get(language)
        script = full.split("_")[1] if full else None
    return language, _SCRIPTS.get(script, script) if script else None


def resolve(tag: str, codes: Collection[str], where: str) -> str:
    """The code among `codes` that means `tag`.

    A code itself is taken as it is. The script must agree, unless the model has only one code for the language.

    Args:
        tag: BCP 47, or one of the codes.
        codes: what the model knows, bare: `swh_Latn`, `sw`.
        where: what to call the model in the message.

    Raises:
        UserError: the model has no such language, or not in this script.
    """
    if tag in codes:
        return tag
    wanted = form(tag)
    forms = {code: form(code) for code in sorted(codes)}
    same = [code for code, one in forms.items() if wanted and one and one[0] == wanted[0]]
    # shortest first: the language by itself before one of its variants
    exact = sorted((code for code in same if forms[code] == wanted), key=len)
    if exact:
        return exact[0]
    if len(same) == 1 and wanted and "_" not in tag and "-" not in tag:
        return same[0]
    if same:
        raise UserError(f"{where}: language {tag!r}: known only as {', '.join(same)}; name one of them.")
    short = {one[0]: code for code, one in forms.items() if one}
    hint = _hint(tag, short) or nearest(tag, [*codes])
    hint = hint or f" It knows {len(codes)} languages: {', '.join(sorted(codes)[:5])}, …"
    raise UserError(f"{where}: unknown language {tag!r}; expected a BCP 47 tag such as sw or zh-Hant.{hint}")


def name(tag: str) -> str:
    """The language's English name, for a prompt: `sw` gives Swahili, `zh-TW` Traditional Chinese.

    Raises:
        UserError: CLDR knows no such language.
    """
    names, found = Locale("en").languages, form(tag)
    if found:
        alias = get_global("language_aliases").get(tag.lower())
        for key in (tag.replace("-", "_"), f"{found[0]}_{found[1]}", alias, found[0], tag.lower()):
            if key in names:
                return str(names[key])
    hint = _hint(tag, names)
    raise UserError(f"unknown language {tag!r}; expected a BCP 47 tag such as sw or zh-Hant.{hint}")


def _hint(tag: str, known: Collection[str]) -> str:
    """The nearest of the known tags, for a mistyped tag or an English name."""
    by_name = {str(english).lower(): code for code, english in Locale("en").languages.items() if code in known}
    near = difflib.get_close_matches(tag.lower(), [*known, *by_name], 1)
    return f" Did you mean {by_name.get(near[0], near[0])!r}?" if near else ""


def opus_code(tag: str) -> str:
    """The code in the name of an Opus-MT model: two letters where there are two, else three.

    Raises:
        UserError: not a language tag.
    """
    found = form(tag)
    if found is None:
        raise UserError(f"unknown language {tag!r}; expected a BCP 47 tag such as sw or zh.")
    return _OPUS.get(found[0], found[0])


def spaced(tag: str) -> bool:
    """Whether sentences stand apart by a space in this language's script."""
    found = form(tag)
    return found is None or found[1] not in ("Hans", "Hant", "Jpan", "Hani")
