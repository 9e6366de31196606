"""Recognise which columns of a record are the two sides of a pair, and read the pairs of records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from cctuning.data.layouts import LANG_COLUMNS, check_columns
from cctuning.data.messages import text_of
from cctuning.data.readers import Records
from cctuning.data.schema import BadRow
from cctuning.data.sources import ParallelSource
from cctuning.errors import UserError
from cctuning.extras import available
from cctuning.identify import IDENTIFIED, identify_language
from cctuning.languages import canonical_or_none, language_name, matching, same, unknown

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
        wanted: take only this language.
        identified: the language of the first side, where only the content says it.
    """

    sides: tuple[tuple[str, str | None, str | None], ...] = ()
    mapping: str | None = None
    wanted: str | None = None
    identified: str | None = None

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
            return {_code(code, self.mapping): _said(text, f"{self.mapping}.{code}") for code, text in value.items()}
        found = {}
        for name, lang_column, lang in self.sides:
            said = _said(record.get(lang_column), lang_column) if lang_column else ""
            found[_code(said or lang, lang_column or "lang")] = _said(record.get(name), name)
        return found


Found = Iterator[Pair | tuple[str, BadRow]]  # a pair, or the origin of a bad one and what is wrong


@dataclass
class Opened:
    """One file of a source; `notes` may grow while `pairs` runs."""

    path: str
    pairs: Callable[[], Found]
    fingerprints: dict[str, str]
    notes: list[str] = field(default_factory=list)


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
    found: Sequence[str],
    columns: Mapping[str, str],
    language: str,
    lang: str | None,
    where: str,
    default: str | None = None,
) -> Layout | None:
    """Recognise the layout from the column names `found`; None where they hold no parallel text.

    Args:
        columns: part to column, as the source maps them.
        lang: the source's `lang`: language of records that name none, and the one to take of several.
        default: language of records that name none, from the file's name.
    """
    check_columns(found, columns, where)
    lang_column = columns.get("lang") or next((name for name in LANG_COLUMNS if name in found), None)
    names = [("text", f"text_{language}"), ("text", "reference"), ("prompt", f"prompt_{language}")]
    names += [(f"non_{name}", name) for name in found if canonical_or_none(name) == language]
    for text, reference in names:
        columns_of = (columns.get("text", text), columns.get("reference", reference))
        if all(name in found for name in columns_of):
            return beside(*columns_of, lang_column, lang or default, language)
    if "translation" in found:
        return Layout(mapping="translation", wanted=lang)
    sides = [(name, code, None) for name in found if (code := _lang_beside(name, found))]
    if len(sides) == 2:
        return Layout(tuple(sides), wanted=lang)
    # One column per language: `en`, `sw`; `sentence_eng_Latn`, `sentence_swh_Latn`; `English`, `Swahili`.
    for before in ("", "sentence_", "text_"):
        codes = {name: canonical_or_none(name.removeprefix(before)) for name in found if name.startswith(before)}
        named = {name: code for name, code in codes.items() if code}
        if len(named) > 1 and any(same(code, language) for code in named.values()):
            return Layout(tuple((name, None, code) for name, code in named.items()), wanted=lang)
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


def _said(value: Any, field: str) -> str:
    """Text, or the contents of messages, stripped."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        value = "\n".join(str(turn.get("content", "")) for turn in value)
    return text_of(value, field).strip()


def identified(texts: Iterable[str], language: str, path: str) -> str:
    """The language of the first texts, which is not the reference language; `UserError` where it is not clear."""
    if not available("lingua"):
        raise UserError(f"{path}: no language; {NAMING}, or pip install 'cc-tuning[langid]', which identifies it.")
    code = identify_language(texts)
    if code is None:
        raise UserError(
            f"{path}: the language of its text cannot be identified; {NAMING}, or where there are several, each "
            "record its own."
        )
    if same(code, language):
        raise UserError(
            f"{path}: its text is in {language_name(code)}, the reference language; are text and reference swapped?"
        )
    return code


def taken_by_content(path: str, lang: str) -> str:
    """The note on a language that was identified."""
    return f"{path}: its text is taken to be {language_name(lang)} ({lang}), by its content; if not, {NAMING}."


def read_records(
    records: Records,
    source: ParallelSource,
    language: str,
    default: str | None,
    path: str | None = None,
    layout: Layout | None = None,
) -> Opened:
    path = path or next(iter(records.fingerprints), source.path)

    @cache
    def layout_of(found: tuple[str, ...]) -> Layout:
        chosen = layout or recognise(found, source.columns, language, source.lang, path, default)
        if chosen is None:
            raise BadRow(
                "columns",
                f"no parallel text; expected columns text and text_{language} (or reference), prompt and "
                f"prompt_{language}, translation, or one for each language ({language}, sw, ...), or map them under "
                f"columns:. It has {', '.join(found)}.",
            )
        sides = [(name, column, lang or language_of(name, column)) for name, column, lang in chosen.sides]
        return replace(chosen, sides=tuple(sides))

    @cache
    def language_of(name: str, column: str | None) -> str | None:
        """The language of a column of text by its content, where the first records name none (in `column`)."""
        columns = {*LANG_COLUMNS, source.columns.get("lang", "lang")}
        if column not in {None, *columns}:  # each side has a column of its own
            return None
        every = (one for _, one in records.iterate({name, *columns, *source.where}) if not isinstance(one, BadRow))
        first = [*islice(filter(is_wanted, every), IDENTIFIED)]
        if any(record.get(column) for record in first for column in columns):
            return None  # only some lack it
        code = identified([_said(record.get(name), name) for record in first], language, path)
        opened.notes.append(taken_by_content(path, code))
        return code

    def is_wanted(record: Mapping[str, Any]) -> bool:
        return all(record.get(name) == value for name, value in source.where.items())

    opened = Opened(path, lambda: pairs(), records.fingerprints)
    wanted: set[str] = set()
    if records.columns is not None:
        try:
            chosen = layout_of(tuple(records.columns))
        except BadRow as bad:
            raise UserError(f"{path}: {bad.reason}") from None
        wanted = {*chosen.used, *source.where, "id"} & set(records.columns)

    def pairs() -> Found:
        seen = dict.fromkeys(records.columns or ())
        for origin, record in records.iterate(wanted):
            if isinstance(record, BadRow):
                yield origin, record
                continue
            seen |= dict.fromkeys(record)
            if not is_wanted(record):
                continue
            found = tuple(records.columns or record)
            try:
                chosen = layout_of(found)
                if record.get("response") and not opened.notes:
                    opened.notes.append(f"{path}: its responses are not used; only the parallel text is read.")
                for text, reference, code in pairs_of(chosen.texts(record), language, chosen.wanted):
                    if source.lang and not matching(source.lang, [code]):  # by the record's own column
                        raise Absent("row", f"no text in {source.lang}; it has {code}.")
                    yield Pair(text, reference, code, origin, None, record.get("id"))
            except BadRow as bad:
                yield origin, bad
        for name in source.where if seen else ():
            if name not in seen:
                raise UserError(f"{path}: where: no column {name!r} among {', '.join(seen)}.")

    return opened
