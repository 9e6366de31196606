"""Read CSV and TSV: detect the delimiter, and whether quotation marks quote cells or are ordinary characters.

Spreadsheets and pandas quote a cell that holds a delimiter, a line break or a quotation mark (RFC 4180). Tatoeba, OPUS
and most corpora in TSV quote nothing: `"No" he said.` is a cell as it stands, and a parser that takes its marks for
quotes merges rows, with one row's answer in another's prompt. So the whole file is scanned before it is read.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cctuning.errors import UserError

DELIMITERS = ",;\t|"
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a whole cell


@dataclass(frozen=True)
class Dialect:
    """The format of a file. `skip`: number of lines before its header (Excel's `sep=;`)."""

    delimiter: str
    quotes: bool
    skip: int = 0


def dialect(lines: Iterator[str], usual: str) -> Dialect:
    """Detect the format of a file from its lines; `usual` is the delimiter unless the header does not contain it."""
    head = next(lines, "").rstrip("\r\n")
    skip = 0
    if re.fullmatch(r"sep=.", head):
        usual, skip, head = head[-1], 1, next(lines, "").rstrip("\r\n")
    delimiter = usual if usual in head else max(DELIMITERS, key=head.count)
    if delimiter != "\t":
        return Dialect(delimiter, True, skip)  # with commas, quoting is the rule
    count = head.count(delimiter)
    plain, opened, cells = True, False, 0
    # Whether every cell that begins with a mark has doubled marks in it, and whether every cell begins with one.
    reasons = whole = True
    for line in _with(head, lines):
        found = line.split(delimiter)
        if len(found) != count + 1:
            plain = False
            break
        marked = [cell for cell in found if cell.startswith('"')]
        cells += len(marked)
        quoted = [QUOTED.fullmatch(cell) is not None for cell in marked]
        opened = opened or not all(quoted)
        reasons = reasons and all('""' in cell[1:-1] for cell in marked)
        whole = whole and len(marked) == len(found)
    if not plain or not cells:
        return Dialect(delimiter, True, skip)
    # Every line has the right number of cells by itself. A mark that does not close in its own cell is then an
    # ordinary character, and so is one that does where no cell needed quotes.
    return Dialect(delimiter, not opened and (reasons or whole), skip)


def _with(head: str, lines: Iterator[str]) -> Iterator[str]:
    yield head
    yield from (text for line in lines if (text := line.rstrip("\r\n")))


def table(path: Path, lines: Iterator[str], how: Dialect) -> Iterator[tuple[int, list[str] | str]]:
    """The number of each record's first line, with its cells or with an error message."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default limit is 128 KiB
    held: list[str] = []

    def kept() -> Iterator[str]:
        for line in islice(lines, how.skip, None):
            held.append(line)
            yield line

    if how.quotes:
        reader = csv.reader(kept(), delimiter=how.delimiter, strict=True)
    else:
        reader = csv.reader(kept(), delimiter=how.delimiter, quoting=csv.QUOTE_NONE)
    start, width = 1 + how.skip, 0
    try:
        for cells in reader:
            if cells:
                width = width or len(cells)
                rows = [line for line in held if line.strip()]
                if len(rows) > 1 and all(line.count(how.delimiter) == width - 1 for line in rows):
                    yield (
                        start,
                        (
                            f"a quotation mark joins {len(rows)} lines into one row, and each could be a row; "
                            "close the quote on its line, or double the mark if it is an ordinary character."
                        ),
                    )
                else:
                    yield start, cells
            start = reader.line_num + 1 + how.skip
            held.clear()
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed CSV ({error}); check the quotes of this record.") from None
