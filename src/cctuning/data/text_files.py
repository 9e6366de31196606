"""Open text files: decompress, number lines, and read CSV and TSV.

The delimiter is detected, and whether quotation marks quote cells or are ordinary characters.

Spreadsheets and pandas quote a cell that holds a delimiter, a line break or a quotation mark (RFC 4180). Tatoeba, OPUS
and most corpora in TSV quote nothing: `"No" he said.` is a cell as it stands, and a parser that takes its marks for
quotes merges rows, with one row's answer in another's prompt. So the whole file is scanned before it is read.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from cctuning.errors import UserError

DELIMITERS = ",;\t|"
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a whole cell
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What reading a damaged file raises
DAMAGED = (EOFError, lzma.LZMAError, OSError)
Cells = Iterator[tuple[int, list[str] | str]]


def uncompressed_name(name: str) -> str:
    """The name without `.gz`, `.bz2`, `.xz` or `.zst`."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in COMPRESSED else name


def open_binary(path: Path) -> IO[bytes]:
    """Open a file and decompress it by its suffix."""
    ending = path.suffix.lower()
    if ending == ".zst":
        import pyarrow as pa  # the standard library has Zstandard from Python 3.14 on

        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 18))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending, open)
    return cast(IO[bytes], opener(path, "rb"))


def numbered_lines(path: str | Path, opened: Callable[[], IO[bytes]] | None = None) -> Iterator[tuple[int, bytes]]:
    """Lines of a file (or of what `opened` opens), numbered from 1.

    They are split only at line feeds, because U+2028 may occur inside a JSON string.
    """
    number = 0
    try:
        with opened() if opened else open_binary(Path(path)) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise UserError(f"{path}:1: the file is UTF-16; save it as UTF-8.")
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (*DAMAGED, zlib.error) as error:
        raise UserError(
            f"{path}:{number + 1}: cannot be read from here on ({error}); download the file again."
        ) from None


@dataclass(frozen=True)
class Dialect:
    """The format of a file. `skip`: number of lines before its header (Excel's `sep=;`)."""

    delimiter: str
    quotes: bool
    skip: int = 0


def dialect(lines: Callable[[], Iterator[str]], usual: str) -> Dialect:
    """Detect the format of a file from its lines; `usual` is the delimiter unless the header does not contain it."""
    of_file = lines()
    head = next(of_file, "").rstrip("\r\n")
    skip = 0
    if re.fullmatch(r"sep=.", head):
        usual, skip, head = head[-1], 1, next(of_file, "").rstrip("\r\n")
    delimiter = usual if usual in head else max(DELIMITERS, key=head.count)
    if delimiter != "\t":
        return Dialect(delimiter, True, skip)  # with commas, quoting is the rule
    width, opened, cells = head.count(delimiter) + 1, False, 0
    # Whether every cell that begins with a mark has doubled marks in it, and whether every cell begins with one.
    reasons = whole = True
    for line in chain([head], (text for line in of_file if (text := line.rstrip("\r\n")))):
        found = line.split(delimiter)
        if len(found) != width:
            both = (Dialect(delimiter, quotes, skip) for quotes in (True, False))
            return min(both, key=lambda how: _bad(lines(), width, how))
        marked = [cell for cell in found if cell.startswith('"')]
        cells += len(marked)
        opened = opened or not all(map(QUOTED.fullmatch, marked))
        reasons = reasons and all('""' in cell[1:-1] for cell in marked)
        whole = whole and len(marked) == len(found)
    # Every line has the right number of cells by itself. A mark that does not close in its own cell is then an
    # ordinary character, and so is one that does where no cell needed quotes.
    return Dialect(delimiter, not cells or (not opened and (reasons or whole)), skip)


def _bad(lines: Iterator[str], width: int, how: Dialect) -> float:
    """The number of bad records in a file when it is read in this way."""
    try:
        return sum(isinstance(cells, str) or len(cells) != width for _, cells in table("", lines, how))
    except UserError:
        return float("inf")


def table(path: str, lines: Iterator[str], how: Dialect) -> Iterator[tuple[int, list[str] | str]]:
    """The number of each record's first line, with its cells or with an error message."""
    if not how.quotes:
        for number, line in enumerate(lines, 1):
            if number > how.skip and line.strip():
                yield number, line.rstrip("\r\n").split(how.delimiter)
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default limit is 128 KiB
    held: list[str] = []

    def kept() -> Iterator[str]:
        for line in islice(lines, how.skip, None):
            held.append(line)
            yield line

    reader = csv.reader(kept(), delimiter=how.delimiter, strict=True)
    start, width = 1 + how.skip, 0
    try:
        for cells in reader:
            if cells:
                width = width or len(cells)
                rows = [line for line in held if line.strip()]
                if len(rows) > 1 and all(line.count(how.delimiter) == width - 1 for line in rows):
                    joined = f"a quotation mark joins {len(rows)} lines into one row, and each could be a row;"
                    advice = "close the quote on its line, or double the mark if it is an ordinary character."
                    yield start, f"{joined} {advice}"
                else:
                    yield start, cells
            start = reader.line_num + 1 + how.skip
            held.clear()
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed CSV ({error}); check the quotes of this record.") from None


def read_table(label: str, opened: Callable[[], IO[bytes]], usual: str) -> Callable[[], Cells]:
    """A function that reads a CSV or TSV file from its beginning: the line of each record, with its cells or an error.

    Args:
        usual: the delimiter, unless the first line does not contain it.
    """

    def lines() -> Iterator[str]:
        # A byte that is not UTF-8 becomes a surrogate, which is reported for its row.
        return (line.decode(errors="surrogateescape") for _, line in numbered_lines(label, opened))

    how = dialect(lines, usual)
    return lambda: table(label, lines(), how)
