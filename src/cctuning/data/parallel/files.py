"""Open a source of parallel text and stream its pairs: Moses files, tables, TMX, TBX, zip, Tatoeba, records."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO, Any

from cctuning.data.parallel.columns import SAMPLE, Layout, Pair, recognise, recognise_cells
from cctuning.data.parallel.filenames import (
    TABLES,
    is_in,
    known_in_name,
    languages_in,
    named_by,
    other_side,
    stem_of,
    suffix_of,
)
from cctuning.data.parallel.tatoeba import export_in, read_tatoeba
from cctuning.data.parallel.tmx import read_tbx, read_tmx
from cctuning.data.readers import (
    SUFFIXES,
    Records,
    local_path,
    numbered,
    of_split,
    open_binary,
    open_records,
    uncompressed_name,
)
from cctuning.data.schema import BadRow
from cctuning.data.sources import ParallelSource
from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.identify import identify_language
from cctuning.languages import same

EXPECTED = (
    "expected columns text and text_{0} (or reference), prompt and prompt_{0}, translation, or one for each language "
    "({0}, sw, ...)"
)
XML = {".tmx": ("TMX", read_tmx), ".tbx": ("TBX", read_tbx)}
BESIDE = (".xml", ".ids", ".scores", ".txt.ids")  # other files in the archives of OPUS
DOCUMENTS = ("readme", "license", "licence", "_about", "changelog")
Found = Iterator[Pair | tuple[str, BadRow]]


@dataclass(frozen=True)
class Part:
    """A file, or a member of a zip."""

    label: str  # for origins and messages
    name: str  # without folder and compression
    opened: Callable[[], IO[bytes]]

    @classmethod
    def of(cls, path: Path) -> Part:
        """A file on disk."""
        return cls(str(path), uncompressed_name(path.name), lambda: open_binary(path))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines."""
        return numbered(self.label, self.opened)


@dataclass
class Opened:
    """One file of a source. `layout` describes how it is read; `notes` may grow while `pairs` runs."""

    path: str
    layout: str
    pairs: Callable[[], Found]
    fingerprints: dict[str, str]
    notes: list[str] = field(default_factory=list)


def open_parallel(source: ParallelSource, language: str) -> list[Opened]:
    """Open the files of a source.

    Raises:
        UserError: there is no such file, or no parallel text in it.
    """
    local = local_path(source.path)
    if source.reference is not None:
        return [_two_files(local, local_path(source.reference), source, language)]
    if local.is_file():
        return _file(local, source, language)
    if local.is_dir() and not any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
        export = export_in(local)
        if export:
            return [_export(*export, source, language)]
        return _directory(local, source, language)
    beside = _prefixed(local, source, language)
    if beside:
        return beside
    opened = []
    for records in open_records(source.path, source.name, source.split):
        opened.append(_records(records, source, language, named_by(source.name or local.name, language)))
    return opened


def read_pairs(source: ParallelSource, language: str) -> Iterator[tuple[Opened, Pair | tuple[str, BadRow]]]:
    """Every pair of a source with its file, or the origin and error of a bad one.

    Raises:
        UserError: a file cannot be read or holds no parallel text.
    """
    for opened in open_parallel(source, language):
        for found in opened.pairs():
            yield opened, found


def _prints(*paths: Path) -> dict[str, str]:
    try:
        return {str(path): file_hash(path) for path in paths}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}; give a file.") from None


def _file(path: Path, source: ParallelSource, language: str) -> list[Opened]:
    suffix = suffix_of(path.name)
    if suffix in XML:
        return [_xml(Part.of(path), source, language, _prints(path))]
    if suffix == ".zip":
        return _zip(path, source, language)
    if suffix in SUFFIXES and suffix != ".tsv":
        default = named_by(stem_of(path.name), language)
        return [_records(records, source, language, default) for records in open_records(str(path))]
    if suffix != ".tsv":
        sides = other_side(path, language)
        if sides:
            return [_two_sides(*sides, source)]
    return [_table(Part.of(path), source, language, _prints(path))]


def _directory(folder: Path, source: ParallelSource, language: str) -> list[Opened]:
    """The files of parallel text in a directory; those of one split, where file names have splits."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    chosen = [file for file in files if suffix_of(file.name) in TABLES]
    opened: list[Opened] = []
    for file in of_split(chosen, source.split, folder):
        opened += _file(file, source, language)
    for file in files:
        sides = other_side(file, language) if file not in chosen and not is_in(file.name, language) else None
        if sides and _wanted(sides[2], source.lang):
            opened.append(_two_sides(*sides, source))
    if not opened:
        inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
        hint = f" Its directories: {', '.join(inside[:10])}." if inside else ""
        raise UserError(f"{folder}: no parallel text in this directory; see docs/start/data.md for the formats.{hint}")
    return opened


def _wanted(code: str, lang: str | None) -> bool:
    return lang is None or same(code, lang)


# -- two plain files, line by line ------------------------------------------------------------------------------------


def _prefixed(prefix: Path, source: ParallelSource, language: str) -> list[Opened]:
    """Pairs of files named `prefix.sw` and `prefix.en`."""
    if not prefix.parent.is_dir() or not prefix.name:
        return []
    opened = []
    for file in sorted(prefix.parent.iterdir()):
        code = known_in_name(uncompressed_name(file.name).removeprefix(f"{prefix.name}.")) if file.is_file() else None
        if not code or not file.name.startswith(f"{prefix.name}.") or same(code, language):
            continue
        sides = other_side(file, language) if _wanted(code, source.lang) else None
        if sides:
            opened.append(_two_sides(*sides, source))
    return opened


def _two_files(path: Path, reference: Path, source: ParallelSource, language: str) -> Opened:
    prints = _prints(path, reference)
    code = source.lang or next((code for _, _, code in languages_in(path.name) if not same(code, language)), None)
    code = code or named_by(stem_of(path.name), language)
    parts = Part.of(path), Part.of(reference)
    if code is None:
        code = identify_language(" ".join(raw.decode(errors="replace") for _, raw in islice(parts[0].lines(), 40)))
    if code is None:
        raise UserError(f"{path}: its language cannot be identified; give the source a lang:.")
    return _moses(*parts, code, prints)


def _two_sides(text: Path, reference: Path, code: str, source: ParallelSource) -> Opened:
    return _moses(Part.of(text), Part.of(reference), source.lang or code, _prints(text, reference))


def _moses(text: Part, reference: Part, lang: str, prints: dict[str, str]) -> Opened:
    def pairs() -> Found:
        for left, right in zip_longest(text.lines(), reference.lines()):
            if left is None or right is None:
                shorter, longer = (text, reference) if left is None else (reference, text)
                line = (left or right)[0]
                raise UserError(
                    f"{shorter.label}: ends before line {line}, {longer.label} does not; they must match line by line."
                )
            origin = f"{text.label}:{left[0]}"
            try:
                sides = left[1].decode().strip(), right[1].decode().strip()
            except UnicodeDecodeError:
                yield origin, BadRow("line", "is not UTF-8; re-encode the file.")
                continue
            if not all(sides):
                yield origin, BadRow("line", "one side is empty.")
            else:
                yield Pair(*sides, lang, origin, f"{reference.label}:{right[0]}")

    return Opened(text.label, f"two files line by line ({reference.label})", pairs, prints)


def _zip(path: Path, source: ParallelSource, language: str) -> list[Opened]:
    """The text in a zip: two plain files or a TMX, as OPUS has them, or a table, as ManyThings has it."""
    prints = _prints(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable zip file ({error}); download it again.") from None

    def part(name: str) -> Part:
        return Part(f"{path}/{name}", Path(name).name, lambda: archive.open(name))

    names = [name for name in archive.namelist() if not name.endswith(("/", *BESIDE))]
    names = [name for name in names if not Path(name).name.lower().startswith(DOCUMENTS)]
    tables = [name for name in names if suffix_of(name) in (*XML, ".tsv", ".txt")]
    plain = [(name, place, rest, code) for name in names for place, rest, code in languages_in(Path(name).name)[:1]]
    opened = []
    for name, place, rest, code in plain:
        for other, *where, other_code in plain:
            fits = where == [place, rest] and same(other_code, language) and not same(code, language)
            if fits and _wanted(code, source.lang):
                opened.append(_moses(part(name), part(other), source.lang or code, prints))
    for name in tables if not opened else ():
        read = _xml if suffix_of(name) in XML else _table
        opened.append(read(part(name), source, language, prints))
    if not opened:
        raise UserError(f"{path}: no parallel text among {', '.join(names) or 'its files'} with {language} on a side.")
    return opened


# -- tables and records -----------------------------------------------------------------------------------------------


def _xml(part: Part, source: ParallelSource, language: str, prints: dict[str, str]) -> Opened:
    said, read = XML[suffix_of(part.name)]
    return Opened(part.label, said, lambda: read(part.label, part.opened, language, source.lang), prints)


def _export(sentences: Path, links: Path, source: ParallelSource, language: str) -> Opened:
    def pairs() -> Found:
        return read_tatoeba(sentences, links, language, source.lang)

    return Opened(str(sentences), f"Tatoeba's sentences and links ({links.name})", pairs, _prints(sentences, links))


def _cells(raw: bytes) -> list[str]:
    """The cells of a line. Quotation marks are ordinary characters, except in a cell that is quoted as in CSV and has
    doubled marks in it."""
    cells = raw.decode(errors="surrogateescape").rstrip("\r\n").split("\t")
    return [
        cell[1:-1].replace('""', '"') if '""' in cell and re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell
        for cell in cells
    ]


def _table(part: Part, source: ParallelSource, language: str, prints: dict[str, str]) -> Opened:
    """A tab-separated file, with or without a header."""
    sample = [_cells(raw) for _, raw in islice(part.lines(), SAMPLE) if raw.strip()]
    if not sample:
        raise UserError(f"{part.label}: it is empty.")
    numbers = all(str(place).isdecimal() for place in source.columns.values())
    header = sample[0]
    quoted = len(header) > 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in header)
    header = [cell[1:-1] if quoted else cell for cell in header]
    stem, default = stem_of(part.name), named_by(stem_of(part.name), language)
    layout = None
    if not source.columns or not numbers:
        layout = recognise(header, source.columns, language, source.lang, default)
    if layout and len(sample) > 1 and len(sample[1]) == len(header):
        again = dict(zip(header, sample[1], strict=True))
        if any(again[name] == name for name in layout.used):
            layout = None  # columns of language codes (`eng`, `swh`) look like column names

    def lines() -> Iterator[tuple[str, list[str]]]:
        for number, raw in part.lines():
            if raw.strip():
                cells = _cells(raw)
                yield f"{part.label}:{number}", [_unquoted(cell) for cell in cells] if quoted else cells

    if layout is None:
        roles = recognise_cells(sample, part.label, stem, source.columns, language, source.lang)

        def pairs() -> Found:
            for origin, cells in lines():
                try:
                    yield Pair(*roles.read(cells), origin)
                except BadRow as bad:
                    yield origin, bad

        said = f"columns {roles.text + 1} ({roles.lang}) and {roles.reference + 1} ({language}) of {roles.count}"
        return Opened(part.label, said, pairs, prints)

    def records() -> Iterator[tuple[str, Mapping[str, Any] | BadRow]]:
        for origin, cells in islice(lines(), 1, None):
            if len(cells) != len(header):
                yield origin, BadRow("line", f"{len(cells)} cells where the header has {len(header)}.")
            else:
                yield origin, dict(zip(header, cells, strict=True))

    return _records(Records(header, lambda wanted: records(), prints), source, language, default, part.label)


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _records(
    records: Records, source: ParallelSource, language: str, default: str | None, path: str | None = None
) -> Opened:
    path = path or next(iter(records.fingerprints), source.path)
    layouts: dict[tuple[str, ...], Layout | None] = {}

    def layout_of(found: tuple[str, ...]) -> Layout | None:
        if found not in layouts:
            layouts[found] = recognise(found, source.columns, language, source.lang, default)
        return layouts[found]

    no_text = f"no parallel text; {EXPECTED.format(language)}, or map them under columns:."
    first = layout_of(tuple(records.columns)) if records.columns is not None else None
    if records.columns is not None and first is None:
        raise UserError(f"{path}: {no_text} It has {', '.join(records.columns)}.")
    opened = Opened(path, first.said if first else "", lambda: pairs(), records.fingerprints)
    wanted = {*first.used, *source.where, "id"} if first else set()
    missing = [name for name in source.where if records.columns is not None and name not in records.columns]
    if missing:
        raise UserError(f"{path}: where: no column {missing[0]!r} among {', '.join(records.columns or ())}.")

    def pairs() -> Found:
        for origin, record in records.iterate(wanted & set(records.columns or ())):
            if isinstance(record, BadRow):
                yield origin, record
                continue
            if any(record.get(name) != value for name, value in source.where.items()):
                continue
            layout = first or layout_of(tuple(record))
            if layout is None:
                yield origin, BadRow("columns", f"{no_text} It has {', '.join(record)}.")
                continue
            if not opened.layout:
                opened.layout = layout.said
            if "response" in (records.columns or record) and not opened.notes:
                opened.notes.append(f"{path}: its responses are not used; only the parallel text is read.")
            try:
                for pair in layout.read(record):
                    yield Pair(*pair, origin, None, record.get("id"))
            except BadRow as bad:
                yield origin, bad

    return opened
