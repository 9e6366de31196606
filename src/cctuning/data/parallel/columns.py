"""Recognise which columns of a record are the two sides of a pair: by their names, or without a header by content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cctuning.data.layouts import LANG_COLUMNS, check_columns
from cctuning.data.messages import text_of
from cctuning.data.parallel.filenames import in_name, known_in_name
from cctuning.data.schema import BadRow
from cctuning.errors import UserError
from cctuning.identify import IDENTIFIED, between, identify_language
from cctuning.languages import canonical_or_none, matching, same, unknown

NAMING = "give the source a lang: '{path: FILE, lang: sw}' in place of FILE (cctuning pair: --lang sw)"

# What a header without languages names the two sides, as most tools do.
HEADINGS = set("source target src tgt trg text texts sentence sentences translation original reference".split())  # noqa: SIM905
# Licences, links, ids, files or corpora that a text comes from (NLLB): one word of ASCII with a mark or digit in it.
NO_TEXT = re.compile(r"CC-BY|CC BY|http|(?=\S*([/_.:]\w|\d))[\w/.:+=-]+$", re.ASCII)
CLEAR = 0.2  # how much likelier one column must be in the reference language than the other
SAME = 10  # equal cells from which a column is no text
SAMPLE = 200  # lines from which columns are recognised


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
    found: Sequence[str],
    columns: Mapping[str, str],
    language: str,
    lang: str | None,
    where: str,
    sample: Sequence[Mapping[str, Any]] = (),
) -> Layout | None:
    """Recognise the layout from the column names `found`; None where they hold no parallel text.

    Args:
        columns: part to column, as the source maps them.
        lang: language of records that name none.
        where: the file, for errors.
        sample: records, which tell a column `id` of numbers from one of Indonesian.
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
        named = {name: _language_named(name.removeprefix(before)) for name in found if name.startswith(before)}
        own = [(name, None, code) for name, code in named.items() if code and _has_text(name, sample)]
        if len(own) > 1 and any(same(code, language) for *_, code in own):
            return Layout(tuple(own))
    return None


def _language_named(name: str) -> str | None:
    """The language that a column's name is the code or the name of; `pos` and `key` are codes that nobody means."""
    return known_in_name(name) or (canonical_or_none(name) if len(name) > 3 else None)


def _has_text(name: str, sample: Sequence[Mapping[str, Any]]) -> bool:
    cells = [str(record[name]).strip() for record in sample if record.get(name) is not None]
    return not any(cells) or _are_text([cell for cell in cells if cell])


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


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def recognise_header(
    sample: Sequence[Sequence[str]], columns: Mapping[str, str], language: str, lang: str | None, where: str
) -> Layout | None:
    """As `recognise`, from the first lines of a table; None where the first is no header that it recognises."""
    header = sample[0]
    if columns and all(name.isdecimal() for name in columns.values()):
        return None
    records = [dict(zip(header, cells, strict=False)) for cells in sample[1:]]
    layout = recognise(header, columns, language, lang, where, records)
    if layout and len(sample) > 1 and len(sample[1]) == len(header):
        again = dict(zip(header, sample[1], strict=True))
        if any(again[name] == name for name in layout.used):
            return None  # columns of language codes (`eng`, `swh`) look like column names
    return layout


def _is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether the first line of a table whose columns were recognised by their content holds names of columns.

    It has a word where all other lines have a number, or a few words where one names a side or a language.
    """
    for place, cell in enumerate(first):
        if others and not _is_number(cell) and all(_is_number(line[place]) for line in others):
            return True
    cells = [cell.casefold().replace("_", " ").strip() for cell in first if cell.strip()]
    if any(_is_number(cell) or len(cell.split()) > 3 for cell in cells):
        return False
    return any(HEADINGS & {*cell.split()} or (len(cell) > 3 and canonical_or_none(cell)) for cell in cells)


def recognise_content(
    sample: Sequence[Sequence[str]], columns: Mapping[str, str], language: str, lang: str | None, path: str, stem: str
) -> tuple[list[str], Layout, int]:
    """Recognise the columns of a table without a header that `recognise_header` knows from their content.

    Scores, numbers, language codes, links and attributions are ignored. Which of the two texts is in the reference
    language is decided by columns of codes, then the text itself, then the file's name.

    Args:
        sample: the cells of the first lines.
        columns: part to column number from 1, where the source gives them.
        lang: the other language, where the source or the file's name gives it.
        stem: the file's name without endings.

    Returns:
        Names of the columns; the layout, whose text has no language where only the content says it; and 1 where the
        first line seems to be a header, else 0.
    """
    count = Counter(map(len, sample)).most_common(1)[0][0]
    lines = [cells for cells in sample if len(cells) == count]
    header = len(lines) > 1 and lines[0] is sample[0] and _is_header(lines[0], lines[1:])
    if count < 2:
        raise UserError(f"{path}: no parallel text; expected two columns with a tab between, or names of columns.")
    named = in_name(stem, language)
    if lang is None and named and not any(same(code, language) for code in named):
        raise UserError(
            f"{path}: its name says {' and '.join(named)}, neither of them {language}; set reference_language."
        )
    if columns:
        text, reference = (_place(columns, part, count, path) for part in ("text", "reference"))
    else:
        texts, codes = _texts_and_codes(lines)
        if len(texts) != 2:
            places = ", ".join(str(place + 1) for place in texts) or "none"
            raise UserError(
                f"{path}: expected two columns of text, found {len(texts)} of {count} (columns {places}); say which, "
                "columns: {text: '2', reference: '1'}, or give the file a header."
            )
        side: int | None
        if len(codes) == 2 and any(same(code, language) for code in codes):
            side = 0 if same(codes[0], language) else 1
            lang = codes[1 - side]
        else:
            side = _side_of_reference([[line[place] for line in lines] for place in texts], language, lang)
            if side is None and named and lang:
                side = 0 if same(named[0], language) else 1
        if side is None:
            one, two = (place + 1 for place in texts)
            advice = (
                f"correct lang: {lang}, or give columns: {{text: '{two}', reference: '{one}'}}" if lang else NAMING
            )
            raise UserError(f"{path}: cannot tell which of columns {one} and {two} is in {language}; {advice}.")
        text, reference = texts[1 - side], texts[side]
    names = [f"column {place + 1}" for place in range(count)]
    return names, beside(names[text], names[reference], None, lang, language), int(header)


def _texts_and_codes(lines: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """The places of the columns of text, and the language codes that columns repeat in every line."""
    texts, codes = list[int](), list[str]()
    for place in range(len(lines[0])):
        cells = [line[place].strip() for line in lines]
        filled = [cell for cell in cells if cell]
        if len(lines) > 1 and len(set(filled)) == 1 and canonical_or_none(filled[0]):
            codes.append(str(canonical_or_none(filled[0])))
        elif filled and _are_text(filled):
            texts.append(place)
    return texts, codes


def _are_text(cells: Sequence[str]) -> bool:
    if len(cells) >= SAME and len(set(cells)) == 1:
        return False  # the name of a corpus, a licence
    numbers, others = sum(map(_is_number, cells)), sum(bool(NO_TEXT.match(cell)) for cell in cells)
    return numbers <= 0.9 * len(cells) and others < 0.8 * len(cells)


def _side_of_reference(texts: Sequence[Sequence[str]], language: str, other: str | None) -> int | None:
    """Which of two columns of text is in the reference language by its content; None where it is not clear.

    `other` is the language of the other column, where it is known.
    """
    if other is None:
        found = [identify_language(text)[0] for text in texts]
        here = [side for side, code in enumerate(found) if code and same(code, language)]
        return here[0] if len(here) == 1 and found[1 - here[0]] else None
    one, two = (between(" ".join(text[:IDENTIFIED]), language, other) for text in texts)
    if one is None or two is None or abs(one - two) < CLEAR:
        return None
    return 0 if one > two else 1


def _place(columns: Mapping[str, str], part: str, count: int, path: str) -> int:
    value = str(columns.get(part, ""))
    if not value.isdecimal() or not 1 <= int(value) <= count:
        raise UserError(f"{path}: columns: {part}: the file has no header; expected a number from 1 to {count}.")
    return int(value) - 1
