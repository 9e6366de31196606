"""Recognise the columns of a table without a header by what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cctuning.data.parallel.columns import NAMING, Layout, beside
from cctuning.data.parallel.filenames import in_name, named_by
from cctuning.errors import UserError
from cctuning.identify import IDENTIFIED, between, identify_language
from cctuning.languages import canonical_or_none, same

# What a header without languages names the two sides, as most tools do.
HEADINGS = set("source target src tgt trg text texts sentence sentences translation original reference".split())  # noqa: SIM905
# Licences, links, and files or corpora that a text comes from (NLLB): one word of ASCII with a mark in it.
NO_TEXT = re.compile(r"CC-BY|CC BY|http|(?=\S*[/_.:]\w)[\w/.:+=-]+$", re.ASCII)
CLEAR = 0.2  # how much likelier one column must be in the reference language than the other
SAME = 10  # equal cells from which a column is no text
SAMPLE = 200  # lines from which columns are recognised


def numbered(count: int) -> list[str]:
    """Names of the columns of a table without a header."""
    return [f"column {place + 1}" for place in range(count)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
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


def recognise_numbered(
    lines: Sequence[Sequence[str]], path: str, stem: str, columns: Mapping[str, str], language: str, lang: str | None
) -> Layout:
    """Recognise the columns of a table without a header from their content; `numbered` names them.

    Scores, numbers, language codes, links and attributions are ignored. Which of the two texts is in the reference
    language is decided by columns of codes, then the text itself, then the file's name.

    Args:
        lines: the cells of the first lines.
        stem: the file's name without endings.
        columns: part to column number from 1, where the source gives them.
        lang: the other language, where the source gives it.

    Returns:
        The layout; its text has no language where only the content says it.
    """
    count = len(lines[0])
    if count < 2:
        raise UserError(f"{path}: no parallel text; expected two columns with a tab between, or names of columns.")
    named = in_name(stem)
    if lang is None and named and not any(same(code, language) for code in named):
        raise UserError(
            f"{path}: its name says {' and '.join(named)}, neither of them {language}; set reference_language."
        )
    lang = lang or named_by(stem, language)
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
            advice = f"give columns: {{text: '{two}', reference: '{one}'}}" if lang else NAMING
            raise UserError(f"{path}: cannot tell which of columns {one} and {two} is in {language}; {advice}.")
        text, reference = texts[1 - side], texts[side]
    names = numbered(count)
    return beside(names[text], names[reference], None, lang, language)


def _texts_and_codes(lines: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """The places of the columns of text, and the language codes that columns repeat in every line."""
    texts, codes = list[int](), list[str]()
    for place in range(len(lines[0])):
        cells = [line[place].strip() for line in lines]
        filled = [cell for cell in cells if cell]
        if not filled or sum(map(_is_number, filled)) > 0.9 * len(filled):
            continue
        if len(lines) > 1 and len(set(filled)) == 1 and canonical_or_none(filled[0]):
            codes.append(str(canonical_or_none(filled[0])))
        elif len(filled) >= SAME and len(set(filled)) == 1:
            continue  # the name of a corpus, a licence
        elif sum(bool(NO_TEXT.match(cell)) for cell in filled) < 0.8 * len(filled):
            texts.append(place)
    return texts, codes


def _side_of_reference(texts: Sequence[Sequence[str]], language: str, other: str | None) -> int | None:
    """Which of two columns of text is in the reference language by its content; None where it is not clear.

    `other` is the language of the other column, where it is known.
    """
    if other is None:
        found = [identify_language(text) for text in texts]
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
