"""Open a source of parallel text and stream its pairs: Moses files, tables, TMX, TBX, zip, Tatoeba, records."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO

from cctuning.data.parallel.columns import (
    Absent,
    Found,
    Opened,
    Pair,
    identified,
    read_records,
    recognise,
    taken_by_content,
)
from cctuning.data.parallel.filenames import TABLES, is_tar, languages_in, named_by, sides_among, stem_of, suffix_of
from cctuning.data.parallel.headerless import SAMPLE, is_header, numbered, recognise_numbered
from cctuning.data.parallel.published import FORMATS, export_in, read_tatoeba, read_xml
from cctuning.data.readers import SUFFIXES, Records, as_records, is_saved, local_path, of_split, open_records
from cctuning.data.schema import BadRow
from cctuning.data.sources import ParallelSource
from cctuning.data.text_files import numbered_lines, open_binary, read_table, uncompressed_name
from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.languages import matches, same

BESIDE = (".xml", ".ids", ".scores", ".txt.ids")  # other files in the archives of OPUS
DOCUMENTS = ("readme", "license", "licence", "_about", "changelog")


@dataclass(frozen=True)
class Part:
    """A file, or a member of a zip."""

    label: str  # for origins and messages
    name: str  # without folder and compression
    opened: Callable[[], IO[bytes]]

    @classmethod
    def of(cls, path: str | Path) -> Part:
        """A file on disk."""
        return cls(str(path), uncompressed_name(Path(path).name), lambda: open_binary(Path(path)))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines."""
        return numbered_lines(self.label, self.opened)


def read_pairs(source: ParallelSource, language: str) -> Iterator[tuple[Opened, Pair | tuple[str, BadRow]]]:
    """Every pair of a source with its file, or the origin and error of a bad one.

    Where the source's `lang` names a region, pairs of another region are taken only if it has none of that one.
    """
    files, exact = _open(source, language), None

    def fits(found: Pair | tuple[str, BadRow]) -> bool:
        return source.lang is None or (isinstance(found, Pair) and matches(source.lang, found.lang))

    for opened in files:
        for found in opened.pairs():
            if isinstance(found, Pair) and not fits(found):
                if exact is None:
                    exact = any(fits(other) for file in files for other in file.pairs())
                if exact:
                    found = found.origin, Absent("row", f"its text is in {found.lang}; others are in {source.lang}.")
                elif (
                    note := f"{opened.path}: no text in {source.lang}; its {found.lang} is taken."
                ) not in opened.notes:
                    opened.notes.append(note)
            yield opened, found


def _open(source: ParallelSource, language: str) -> list[Opened]:
    local = local_path(source.path)
    if source.reference is not None:
        return [_two_files(local, local_path(source.reference), source, language)]
    if local.is_file():
        return _file(local, source, language)
    if local.is_dir() and not is_saved(local):
        return _directory(local, source, language)
    prefixed = [file for file in _files(local.parent) if uncompressed_name(file.name).rpartition(".")[0] == local.name]
    opened = _sides(prefixed, source, language)
    if opened:
        return opened
    default = named_by(source.name or local.name, language)
    return [
        read_records(records, source, language, default)
        for records in open_records(source.path, source.name, source.split)
    ]


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []


def _hashes(*paths: str | Path) -> dict[str, str]:
    try:
        return {str(path): file_hash(Path(path)) for path in paths}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}; give a file.") from None


def _file(path: Path, source: ParallelSource, language: str) -> list[Opened]:
    suffix = suffix_of(path.name)
    if suffix == ".zip":
        return _zip(path, source, language)
    if is_tar(path.name):
        raise UserError(f"{path}: a tar archive; unpack it first (tar -xf), and name the file or directory in it.")
    if suffix in SUFFIXES and suffix != ".tsv":
        default = named_by(stem_of(path.name), language)
        return [read_records(records, source, language, default) for records in open_records(str(path))]
    if suffix not in (*FORMATS, ".tsv"):
        among = sides_among(map(str, _files(path.parent)), language)
        sides = [side for side in among if str(path) in side[:2]]
        if len(sides) > 1:
            names = ", ".join(Path(text).name for text, _, _ in sides)
            raise UserError(f"{path}: more than one file matches it: {names}; name one of them.")
        if sides:
            text, reference, code = sides[0]
            return [_moses(Part.of(text), Part.of(reference), source.lang or code, _hashes(text, reference))]
    return [_document(Part.of(path), source, language, _hashes(path))]


def _directory(folder: Path, source: ParallelSource, language: str) -> list[Opened]:
    """The files of parallel text in a directory; those of one split, where file names have splits."""
    export = export_in(folder)
    if export:
        pairs = lambda: read_tatoeba(*export, language, source.lang)  # noqa: E731
        return [Opened(str(folder), pairs, _hashes(*export[0], *export[1]))]
    files = [file for file in _files(folder) if suffix_of(file.name) in TABLES or languages_in(file.name)]
    files = of_split(files, source.split, folder)
    tables = [file for file in files if suffix_of(file.name) in TABLES]
    opened = [one for file in tables for one in _file(file, source, language)]
    opened += _sides([file for file in files if file not in tables], source, language)
    if not opened:
        inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
        hint = f" Its directories: {', '.join(inside[:10])}." if inside else ""
        archives = [file.name for file in _files(folder) if is_tar(file.name)]
        hint += f" Unpack {', '.join(archives)} first (tar -xf)." if archives else ""
        raise UserError(f"{folder}: no parallel text in this directory; see docs/start/data.md for the formats.{hint}")
    return opened


def _zip(path: Path, source: ParallelSource, language: str) -> list[Opened]:
    """The text in a zip: two plain files or a TMX, as OPUS has them, or a table, as ManyThings has it."""
    hashes = _hashes(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable zip file ({error}); download it again.") from None

    def part(name: str | Path) -> Part:
        return Part(f"{path}/{name}", Path(name).name, lambda: archive.open(str(name)))

    names = [name for name in archive.namelist() if not name.endswith(("/", *BESIDE))]
    names = [name for name in names if not Path(name).name.lower().startswith(DOCUMENTS)]
    opened = _sides(names, source, language, part, hashes)
    for name in names if not opened else ():
        if suffix_of(name) in (*FORMATS, ".tsv", ".txt"):
            opened.append(_document(part(name), source, language, hashes))
    if not opened:
        raise UserError(f"{path}: no parallel text among {', '.join(names) or 'its files'} with {language} on a side.")
    return opened


# -- two plain files, line by line ------------------------------------------------------------------------------------


def _sides(
    names: Iterable[str | Path],
    source: ParallelSource,
    language: str,
    part: Callable[[str], Part] = Part.of,
    hashes: dict[str, str] | None = None,
) -> list[Opened]:
    """The pairs of files among `names` that differ only in the language."""
    return [
        _moses(part(text), part(reference), source.lang or code, hashes or _hashes(text, reference))
        for text, reference, code in sides_among(map(str, names), language)
        if source.lang is None or same(code, source.lang)
    ]


def _two_files(path: Path, reference: Path, source: ParallelSource, language: str) -> Opened:
    hashes, text = _hashes(path, reference), Part.of(path)
    code = source.lang or next((code for _, _, code in languages_in(path.name) if not same(code, language)), None)
    code = code or named_by(stem_of(path.name), language)
    if code:
        return _moses(text, Part.of(reference), code, hashes)
    code = identified((raw.decode(errors="replace") for _, raw in text.lines()), language, str(path))
    opened = _moses(text, Part.of(reference), code, hashes)
    opened.notes.append(taken_by_content(str(path), code))
    return opened


def _moses(text: Part, reference: Part, lang: str, hashes: dict[str, str]) -> Opened:
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

    return Opened(text.label, pairs, hashes)


# -- tables and records -----------------------------------------------------------------------------------------------


def _document(part: Part, source: ParallelSource, language: str, hashes: dict[str, str]) -> Opened:
    """A file that holds both sides."""
    suffix = suffix_of(part.name)
    if suffix not in FORMATS:
        return _table(part, source, language, hashes)
    return Opened(part.label, lambda: read_xml(part.label, part.opened, suffix, language, source.lang), hashes)


def _table(part: Part, source: ParallelSource, language: str, hashes: dict[str, str]) -> Opened:
    """A tab-separated file, with or without a header."""
    rows = read_table(part.label, part.opened, "\t")
    sample = [cells for _, cells in islice(rows(), SAMPLE) if isinstance(cells, list)]
    if not sample:
        raise UserError(f"{part.label}: it is empty.")
    header, stem, default = sample[0], stem_of(part.name), named_by(stem_of(part.name), language)
    layout = None
    if not source.columns or not all(name.isdecimal() for name in source.columns.values()):
        layout = recognise(header, source.columns, language, source.lang, part.label, default)
    if layout and len(sample) > 1 and len(sample[1]) == len(header):
        again = dict(zip(header, sample[1], strict=True))
        if any(again[name] == name for name in layout.used):
            layout = None  # columns of language codes (`eng`, `swh`) look like column names
    skip, notes = 1, list[str]()
    if layout is None:
        skip = 0
        header = numbered(Counter(map(len, sample)).most_common(1)[0][0])
        alike = [cells for cells in sample if len(cells) == len(header)]
        layout = recognise_numbered(alike, part.label, stem, source.columns, language, source.lang)
        if len(alike) > 1 and alike[0] is sample[0] and is_header(alike[0], alike[1:]):
            skip, notes = 1, [f"{part.label}:1: is read as a header, not as a pair: {', '.join(alike[0])}."]

    found = Records(header, lambda wanted: as_records(part.label, rows, header, skip), hashes)
    if layout.identified:
        notes.append(taken_by_content(part.label, layout.identified))
    opened = read_records(found, source, language, default, part.label, layout)
    opened.notes += notes
    return opened
