"""Recognise which columns of a record are the two sides of a pair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cctuning.data.layouts import LANG_COLUMNS, check_columns
from cctuning.data.messages import text_of
from cctuning.data.schema import BadRow
from cctuning.languages import canonical_or_none, matching, same, unknown

NAMING = "give the source a lang: '{path: FILE, lang: sw}' in place of FILE"


class Pair(NamedTuple):
    """A text and its translation in the reference language; `reference_origin` where that is in another file."""

    text: str
    reference: str
    lang: str  # canonical
    origin: str
    reference_origin: str | None = None
    id: Any = None


class Absent(BadRow):
    """A record without this pair of languages, which is skipped: no error in a file of many languages."""


@dataclass(frozen=True)
class Layout:
    """How records are read.

    Attributes:
        sides: column of a text, column of its language, and the language where that has none.
        mapping: a column that maps languages to texts, in place of `sides`.
    """

    sides: tuple[tuple[str, str | None, str | None], ...] = ()
    mapping: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The columns."""
        names = [self.mapping, *(name for text, lang, _ in self.sides for name in (text, lang))]
        return tuple(name for name in names if name is not None)

    def texts(self, record: Mapping[str, Any]) -> dict[str, str]:
        """The texts of a record by canonical language code."""
        if self.mapping is not None:
            value = record.get(self.mapping)
            if not isinstance(value, Mapping):
                raise BadRow(self.mapping, f"expected language: text, found {type(value).__name__}.")
            return {_code(code, self.mapping): text_in(text, f"{self.mapping}.{code}") for code, text in value.items()}
        found = {}
        for name, lang_column, lang in self.sides:
            said = text_in(record.get(lang_column), lang_column) if lang_column else ""
            found[_code(said or lang, lang_column or "lang")] = text_in(record.get(name), name)
        return found


Found = Iterator[Pair | tuple[str, BadRow]]  # a pair, or the origin of a bad one and what is wrong


def pairs_of(texts: Mapping[str, str], language: str, wanted: str | None) -> list[tuple[str, str, str]]:
    """The pairs of a text in several languages (all, or `wanted` alone) with its text in the reference language.

    Empty text counts as missing. `Absent` where there is no pair, `BadRow` where one of two sides is empty.
    """
    given = {code: text for code, text in texts.items() if text}
    if len(texts) == 2 and len(given) < 2:
        raise BadRow("text", "one side is empty.")
    own = matching(language, given)
    others = [code for code in given if not any(same(code, one) for one in own)]
    if wanted is not None:
        others = matching(wanted, others)
    if not own or not others:
        missing = language if not own else wanted or "another language"
        raise Absent("row", f"no text in {missing}; it has {', '.join(given) or 'none'}.")
    return [(given[code], given[own[0]], code) for code in others]


def recognise(
    found: Sequence[str], columns: Mapping[str, str], language: str, lang: str | None, where: str
) -> Layout | None:
    """Recognise the layout from the column names `found`; None where they hold no parallel text.

    Args:
        columns: part to column, as the source maps them.
        lang: language of records that name none.
        where: the file, for errors.
    """
    check_columns(found, columns, where)
    lang_column = columns.get("lang") or next((name for name in LANG_COLUMNS if name in found), None)
    names = [("text", f"text_{language}"), ("text", "reference"), ("prompt", f"prompt_{language}")]
    names += [(f"non_{name}", name) for name in found if canonical_or_none(name) == language]
    for text, reference in names:
        columns_of = (columns.get("text", text), columns.get("reference", reference))
        if all(name in found for name in columns_of):
            return beside(*columns_of, lang_column, lang, language)
    if "translation" in found:
        return Layout(mapping="translation")
    sides = [(name, code, None) for name in found if (code := _lang_beside(name, found))]
    if len(sides) == 2:
        return Layout(tuple(sides))
    # One column per language: `en`, `sw`; `sentence_eng_Latn`, `sentence_swh_Latn`; `English`, `Swahili`.
    for before in ("", "sentence_", "text_"):
        codes = {name: canonical_or_none(name.removeprefix(before)) for name in found if name.startswith(before)}
        named = {name: code for name, code in codes.items() if code}
        if len(named) > 1 and any(same(code, language) for code in named.values()):
            return Layout(tuple((name, None, code) for name, code in named.items()))
    return None


def _lang_beside(name: str, found: Sequence[str]) -> str | None:
    """The column with the language of a text's column: `src` and `src_lang`, `sourceString` and `sourceLang`."""
    stem = re.sub(r"_?(text|sentence|string)$", "", name.lower())
    stems = {stem, {"source": "src", "target": "tgt"}.get(stem, stem)}
    codes = (one for one in found if re.sub(r"_?lang(uage)?(_?code)?$", "", one.lower()) in stems - {one.lower()})
    return next(codes, None)


def beside(text: str, reference: str, lang_column: str | None, lang: str | None, language: str) -> Layout:
    """A column of text, and one of references."""
    return Layout(((text, lang_column, lang), (reference, None, language)))


def _code(value: str | None, field: str) -> str:
    if not value:
        raise BadRow(field, f"no language; {NAMING}.")
    code = canonical_or_none(value)
    if code is None:
        raise BadRow(field, unknown(value))
    return code


def text_in(value: Any, field: str) -> str:
    """Text, or the contents of messages, stripped."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        value = "\n".join(str(turn.get("content", "")) for turn in value)
    return text_of(value, field).strip()
