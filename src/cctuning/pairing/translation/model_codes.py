"""Map language codes to those of translation models.

A model's tokenizer lists the codes it knows: `swh_Latn` (NLLB), `__sw__` (M2M100), `<2sw>` (MADLAD), `>>swh<<`
(Opus-MT). They are compared by language and script, as `cctuning.languages` parses them.
"""

from __future__ import annotations

from collections.abc import Collection

from cctuning.errors import UserError, nearest
from cctuning.languages import base, language_name, parse, unknown

_M2M100 = {"ns": "nso"}  # its code of Northern Sotho
# Codes in the names of Opus-MT models that are not CLDR's
_OPUS = {"fil": "tl"}

Form = tuple[str, str | None]  # the language by its shortest code, and its script


def form(tag: str) -> Form | None:
    """Language and script of a code, or None; the same for `sw`, `swa` and `swh_Latn`."""
    found = parse(_M2M100.get(tag, tag))
    return None if found is None else (found.language, found.script)


def resolve(tag: str, codes: Collection[str], where: str) -> str:
    """The code among `codes` that means the language `tag`.

    The script must agree, unless the model has only one code for the language.

    Args:
        tag: a language code, an English name, or one of `codes`.
        codes: those of the model, without markers: `swh_Latn`, `sw`.
        where: what to call the model in an error.

    Raises:
        UserError: the model does not know the language, or not in this script.
    """
    if tag in codes:
        return tag
    wanted = form(tag)
    if wanted is None:
        raise UserError(f"{where}: {unknown(tag)}")
    forms = {code: form(code) for code in sorted(codes)}
    same = [code for code, one in forms.items() if one and one[0] == wanted[0]]
    # shortest first: the language before one of its variants
    exact = sorted((code for code in same if forms[code] == wanted), key=len)
    if exact:
        return exact[0]
    if len(same) == 1 and wanted and "_" not in tag and "-" not in tag:
        return same[0]
    if same:
        raise UserError(f"{where}: language {tag!r}: known only as {', '.join(same)}; name one of them.")
    hint = (
        nearest(wanted[0], {one[0] for one in forms.values() if one})
        or f" It knows {len(codes)} languages: {', '.join(sorted(codes)[:5])}, …"
    )
    raise UserError(f"{where}: no code for the language {tag!r} ({language_name(tag)}).{hint}")


def name(tag: str) -> str:
    """The English name of a language: `sw` is Swahili, `zh-TW` Traditional Chinese.

    Raises:
        UserError: CLDR has no name for it.
    """
    language = base(tag)
    if language_name(language) == language:
        raise UserError(f"language {tag!r}: it has no English name in CLDR to ask a model with; expected e.g. sw.")
    return language_name(tag)


def opus_code(tag: str) -> str:
    """The code in the name of an Opus-MT model: two letters where there are two, else three.

    Raises:
        UserError: not a language tag.
    """
    language = base(tag)
    return _OPUS.get(language, language)


def spaced(tag: str) -> bool:
    """Whether sentences are separated by spaces in this language's script."""
    found = form(tag)
    return found is None or found[1] not in ("Hans", "Hant", "Jpan", "Hani")
