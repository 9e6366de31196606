"""CSV, TSV and files with semicolons: which delimiter, and whether a quotation mark quotes or is a letter.

Spreadsheets and pandas quote a cell that holds a delimiter, a line break or a quotation mark (RFC 4180). Tatoeba, OPUS
and most corpora in TSV quote nothing: there `"No" he said.` is a cell as written, and a parser that takes its marks
for quotes merges rows, with one row's answer in another's prompt. So each file is looked through before it is read.
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
    """How a file is written. `skip`: lines before its header (Excel's `sep=;`)."""

    delimiter: str
    quotes: bool
    skip: int = 0


def dialect(lines: Iterator[str], usual: str) -> Dialect:
    """How the file with these lines is written.

    Args:
        lines: with their line ends.
        usual: the delimiter by the file's name; another where the header has none of it.
    """
    head = next(lines, "").rstrip("\r\n")
    skip = 0
    if re.fullmatch(r"sep=.", head):
        usual, skip, head = head[-1], 1, next(lines, "").rstrip("\r\n")
    delimiter = usual if usual in head else max(DELIMITERS, key=head.count)
    if delimiter != "\t":
        return Dialect(delimiter, True, skip)  # in files of commas quoting is the rule
    count = head.count(delimiter)
    plain, opened, cells = True, False, 0
    # whether every cell that begins with a mark had to be quoted, for the doubled marks in it; whether all cells are
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
    # Line by line the file is whole. A mark that does not close in its own cell is then a letter, and one that does is
    # a letter where nothing asked for quotes.
    return Dialect(delimiter, not opened and (reasons or whole), skip)


def _with(head: str, lines: Iterator[str]) -> Iterator[str]:
    yield head
    yield from (text for line in lines if (text := line.rstrip("\r\n")))


def table(path: Path, lines: Iterator[str], how: Dialect) -> Iterator[tuple[int, list[str] | str]]:
    """The number of each record's first line, with its cells, or with what is wrong with it.

    Raises:
        UserError: a quoted cell that is not well formed.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default would refuse a response above 128 KiB
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
                            f"a quotation mark takes {len(rows)} lines into one row, and each could be a row itself; "
                            "close it in its own line, or double it if it is a letter."
                        ),
                    )
                else:
                    yield start, cells
            start = reader.line_num + 1 + how.skip
            held.clear()
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed CSV ({error}); check the quotes of this record.") from None
