"""Open a source of parallel text and stream its pairs: Moses files, tables, TMX, TBX, zip, Tatoeba, records."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cctuning.data.layouts import LANG_COLUMNS
from cctuning.data.parallel.columns import (
    NAMING,
    SAMPLE,
    Absent,
    Found,
    Layout,
    Pair,
    pairs_of,
    recognise,
    recognise_content,
    recognise_header,
    text_in,
)
from cctuning.data.parallel.filenames import TABLES, is_tar, languages_in, named_by, sides_among, stem_of, suffix_of
from cctuning.data.parallel.formats import FORMATS, Part, export_in, read_lines, read_tatoeba, read_xml
from cctuning.data.readers import SUFFIXES, Records, as_records, files_in, is_saved, local_path, of_split, open_records
from cctuning.data.schema import BadRow
from cctuning.data.sources import ParallelSource
from cctuning.data.text_files import read_table, uncompressed_name
from cctuning.errors import UserError
from cctuning.extras import available
from cctuning.files import file_hash
from cctuning.identify import IDENTIFIED, Spread, identify_language
from cctuning.languages import language_name, matches, region_notes, same

BESIDE = (".xml", ".ids", ".scores", ".txt.ids")  # other files in the archives of OPUS
DOCUMENTS = ("readme", "license", "licence", "_about", "changelog")


@dataclass
class PairReader:
    """Reads the pairs of a source.

    Attributes:
        language: the reference language, canonical.
        said: (filled) what the user should know about how they were read.
        fingerprints: (filled) file or data set to its hash.
    """

    source: ParallelSource
    language: str
    said: dict[str, None] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What the user should know about how the pairs were read."""
        return list(self.said)

    def read(self) -> Found:
        """Every pair, or the origin and error of a bad one.

        Where the source's `lang` names a region, pairs of another region are taken only if it has none of that one.
        """
        exact, wanted = None, self.source.lang

        def fits(found: Pair | tuple[str, BadRow]) -> bool:
            return wanted is None or (isinstance(found, Pair) and matches(wanted, found.lang))

        for found in chain.from_iterable(self._files()):
            if isinstance(found, Pair) and not fits(found):
                if exact is None:
                    exact = any(map(fits, chain.from_iterable(self._files())))
                if exact:
                    other = f"its text is in {found.lang}; others are in {wanted}."
                    yield found.origin, Absent("row", other, found._asdict())
                    continue
                self.said |= {f"{self.source.path}: {note}": None for note in region_notes(str(wanted), [found.lang])}
            yield found

    def _files(self) -> list[Found]:
        source, local = self.source, local_path(self.source.path)
        if source.reference is not None:
            return [self._two_files(local, local_path(source.reference))]
        if local.is_file():
            return self._file(local)
        if local.is_dir() and not is_saved(local):
            return self._directory(local)
        beside = ((file, uncompressed_name(file.name)) for file in files_in(local.parent))
        if sides := self._sides(file for file, name in beside if name.rpartition(".")[0] == local.name):
            return sides
        lang = named_by(source.name or local.name, self.language)
        return [self._records(records, lang) for records in open_records(source.path, source.name, source.split)]

    def _hash(self, *paths: str | Path) -> None:
        try:
            self.fingerprints |= {str(path): file_hash(Path(path)) for path in paths}
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}; give a file.") from None

    def _file(self, path: Path) -> list[Found]:
        suffix = suffix_of(path.name)
        if suffix == ".zip":
            return self._zip(path)
        if is_tar(path.name):
            raise UserError(f"{path}: a tar archive; unpack it first (tar -xf), and name the file or directory in it.")
        if suffix in SUFFIXES and suffix != ".tsv":
            lang = named_by(stem_of(path.name), self.language)
            return [self._records(records, lang) for records in open_records(str(path))]
        if suffix not in (*FORMATS, ".tsv"):
            among = sides_among(map(str, files_in(path.parent)), self.language)
            sides = [side for side in among if str(path) in side[:2]]
            if len(sides) > 1:
                names = ", ".join(Path(text).name for text, _, _ in sides)
                raise UserError(f"{path}: more than one file matches it: {names}; name one of them.")
            if sides:
                text, reference, code = sides[0]
                self._hash(text, reference)
                return [read_lines(Part.of(text), Part.of(reference), self.source.lang or code)]
        self._hash(path)
        return [self._document(Part.of(path))]

    def _directory(self, folder: Path) -> list[Found]:
        """The files of parallel text in a directory; those of one split, where file names have splits."""
        if export := export_in(folder):
            self._hash(*export[0], *export[1])
            return [read_tatoeba(*export, self.language, self.source.lang)]
        files = [file for file in files_in(folder) if suffix_of(file.name) in TABLES or languages_in(file.name)]
        files = of_split(files, self.source.split, folder)
        tables = [file for file in files if suffix_of(file.name) in TABLES]
        found = [one for file in tables for one in self._file(file)]
        found += self._sides([file for file in files if file not in tables])
        if not found:
            inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
            hint = f" Its directories: {', '.join(inside[:10])}." if inside else ""
            archives = [file.name for file in files_in(folder) if is_tar(file.name)]
            hint += f" Unpack {', '.join(archives)} first (tar -xf)." if archives else ""
            raise UserError(
                f"{folder}: no parallel text in this directory; see docs/start/data.md for the formats.{hint}"
            )
        return found

    def _zip(self, path: Path) -> list[Found]:
        """The text in a zip: two plain files or a TMX, as OPUS has them, or a table, as ManyThings has it."""
        self._hash(path)
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a readable zip file ({error}); download it again.") from None

        def part(name: str) -> Part:
            return Part(f"{path}/{name}", Path(name).name, lambda: archive.open(name))

        names = [name for name in archive.namelist() if not name.endswith(("/", *BESIDE))]
        names = [name for name in names if not Path(name).name.lower().startswith(DOCUMENTS)]
        documents = [name for name in names if suffix_of(name) in (*FORMATS, ".tsv", ".txt")]
        found = self._sides(names, part) or [self._document(part(name)) for name in documents]
        if not found:
            names_there = ", ".join(names) or "its files"
            raise UserError(f"{path}: no parallel text among {names_there} with {self.language} on a side.")
        return found

    def _sides(self, names: Iterable[str | Path], part: Callable[[str], Part] | None = None) -> list[Found]:
        """The pairs of plain files among `names` that differ only in the language; of a zip, with its `part`."""
        found = []
        for text, reference, code in sides_among(map(str, names), self.language):
            if self.source.lang is None or same(code, self.source.lang):
                if part is None:
                    self._hash(text, reference)
                opened = part or Part.of
                found.append(read_lines(opened(text), opened(reference), self.source.lang or code))
        return found

    def _two_files(self, path: Path, reference: Path) -> Found:
        self._hash(path, reference)
        text, language = Part.of(path), self.language
        named = (code for _, _, code in languages_in(path.name) if not same(code, language))
        code = self.source.lang or next(named, None) or named_by(stem_of(path.name), language)
        if code is None:
            lines = islice(text.lines(), self.source.limit)
            code = self._identified((raw.decode(errors="replace") for _, raw in lines), str(path))
        return read_lines(text, Part.of(reference), code)

    def _identified(self, texts: Iterable[str], path: str) -> str:
        code, note = identified(texts, self.language, path)
        self.said[note] = None
        return code

    def _document(self, part: Part) -> Found:
        """A file that holds both sides."""
        suffix = suffix_of(part.name)
        if suffix in FORMATS:
            return read_xml(part, suffix, self.language, self.source.lang)
        return self._table(part)

    def _table(self, part: Part) -> Found:
        """A tab-separated file, with or without a header."""
        columns, stem = self.source.columns, stem_of(part.name)
        rows = read_table(part.label, part.opened, "\t")
        sample = [cells for _, cells in islice(rows(), SAMPLE) if isinstance(cells, list)]
        if not sample:
            raise UserError(f"{part.label}: it is empty.")
        lang = self.source.lang or named_by(stem, self.language)
        header, skip = sample[0], 1
        layout = recognise_header(sample, columns, self.language, lang, part.label)
        if layout is None:
            header, layout, skip = recognise_content(sample, columns, self.language, lang, part.label, stem)
            if skip:
                first = ", ".join(sample[0])
                self.said[f"{part.label}:1: is read as a header, not as a pair: {first}."] = None
        records = Records(header, lambda wanted: as_records(part.label, rows, header, skip), {})
        return self._records(records, lang, part.label, layout)

    def _records(
        self, records: Records, named: str | None, path: str | None = None, layout: Layout | None = None
    ) -> Found:
        """The pairs of records; `named` is the language of their file's name, `layout` theirs where it is known."""
        source, where, language = self.source, self.source.where, self.language
        path = path or next(iter(records.fingerprints), source.path)
        self.fingerprints |= records.fingerprints

        def is_wanted(record: Mapping[str, Any]) -> bool:
            return all(record.get(name) == value for name, value in where.items())

        @cache
        def sample() -> list[Mapping[str, Any]]:
            some = islice(records.iterate(records.columns or ()), SAMPLE)
            return [one for _, one in some if not isinstance(one, BadRow)]

        @cache
        def layout_of(found: tuple[str, ...]) -> Layout:
            chosen = layout or recognise(found, source.columns, language, source.lang or named, path, sample())
            if chosen is None:
                raise BadRow(
                    "columns",
                    f"no parallel text; expected columns text and text_{language} (or reference), prompt and "
                    f"prompt_{language}, translation, or one for each language ({language}, sw, ...), or map them "
                    f"under columns:. It has {', '.join(found)}.",
                )
            sides = [(name, column, lang or language_of(name, column)) for name, column, lang in chosen.sides]
            return replace(chosen, sides=tuple(sides))

        @cache
        def language_of(name: str, column: str | None) -> str | None:
            """The language of a column of text by its content, where the records sampled name none (in `column`)."""
            columns = {*LANG_COLUMNS, source.columns.get("lang", "lang")}
            if column not in {None, *columns}:  # one column for each side
                return None
            every = (one for _, one in records.iterate({name, *columns, *where}) if not isinstance(one, BadRow))
            sample = Spread(IDENTIFIED, islice(filter(is_wanted, every), source.limit)).sample()
            if any(record.get(column) for record in sample for column in columns):
                return None  # only some lack it
            return self._identified([text_in(record.get(name), name) for record in sample], path)

        used: set[str] = set()
        if records.columns is not None:
            try:
                used = {*layout_of(tuple(records.columns)).used, *where, "id"} & set(records.columns)
            except BadRow as bad:
                raise UserError(f"{path}: {bad.reason}") from None
        seen = dict.fromkeys(records.columns or ())
        for origin, record in records.iterate(used):
            if isinstance(record, BadRow):
                yield origin, record
                continue
            seen |= dict.fromkeys(record)
            if not is_wanted(record):
                continue
            try:
                texts = layout_of(tuple(records.columns or record)).texts(record)
                if record.get("response"):
                    self.said[f"{path}: its responses are not used; only the parallel text is read."] = None
                for text, reference, code in pairs_of(texts, language, source.lang):
                    yield Pair(text, reference, code, origin, None, record.get("id"))
            except BadRow as bad:
                bad.record = record
                yield origin, bad
        for name in where if seen else ():
            if name not in seen:
                raise UserError(f"{path}: where: no column {name!r} among {', '.join(seen)}.")


def identified(texts: Iterable[str], language: str, path: str, naming: str = NAMING) -> tuple[str, str]:
    """The language of texts by a sample spread over them, and a note on it.

    Args:
        language: the reference language. naming: how the user names another.

    Raises:
        UserError: it is not clear, or the reference language.
    """
    if not available("lingua"):
        raise UserError(f"{path}: no language; {naming}, or pip install 'cc-tuning[langid]', which identifies it.")
    code, looks = identify_language(texts)
    if code is None:
        found = f" (it looks like {', '.join(map(language_name, looks[:4]))})" if len(looks) > 1 else ""
        raise UserError(
            f"{path}: the language of its text cannot be identified{found}; {naming}, or where there are several, "
            "give each record its own."
        )
    name = language_name(code)
    if same(code, language):
        raise UserError(f"{path}: its text is in {name}, the reference language; are text and reference swapped?")
    return code, f"{path}: its text is taken to be {name} ({code}), by its content; if not, {naming}."
