"""From a language to what each family of models calls it, without a table of our own.

A model's tokenizer lists the codes it knows: `swh_Latn` (NLLB), `__sw__` (M2M100), `<2sw>` (MADLAD), `>>swh<<`
(Opus-MT). Both sides are brought to one form, a language and its script, by `cctuning.languages`.
"""

from __future__ import annotations

from collections.abc import Collection

from cctuning.errors import UserError, nearest
from cctuning.languages import base, language_name, parse, unknown

_M2M100 = {"ns": "nso"}  # its own code of Northern Sotho
# Codes under which Opus-MT published models, where it is not CLDR's shortest
_OPUS = {"fil": "tl"}

Form = tuple[str, str | None]  # the language by its shortest code, and its script


def form(tag: str) -> Form | None:
    """A tag's language and script; None if it is no tag. `sw`, `swa` and `swh_Latn` give the same."""
    found = parse(_M2M100.get(tag, tag))
    return None if found is None else (found.language, found.script)


def resolve(tag: str, codes: Collection[str], where: str) -> str:
    """The code among `codes` that means `tag`.

    A code itself is taken as it is. The script must agree, unless the model has only one code for the language.

    Args:
        tag: BCP 47, an English name, or one of the codes.
        codes: what the model knows, bare: `swh_Latn`, `sw`.
        where: what to call the model in the message.

    Raises:
        UserError: the model has no such language, or not in this script.
    """
    if tag in codes:
        return tag
    wanted = form(tag)
    if wanted is None:
        raise UserError(f"{where}: {unknown(tag)}")
    forms = {code: form(code) for code in sorted(codes)}
    same = [code for code, one in forms.items() if one and one[0] == wanted[0]]
    # shortest first: the language by itself before one of its variants
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
    """The language's English name, for a prompt: `sw` gives Swahili, `zh-TW` Traditional Chinese.

    Raises:
        UserError: CLDR knows no such language.
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
    """Whether sentences stand apart by a space in this language's script."""
    found = form(tag)
    return found is None or found[1] not in ("Hans", "Hant", "Jpan", "Hani")
