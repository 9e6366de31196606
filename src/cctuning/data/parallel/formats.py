"""Stream the pairs of two plain files, translation memories (TMX), glossaries (TBX, ISO 30042) and Tatoeba's export.

ElementTree opens no file that an entity names, and expat limits how far entities expand; both are errors.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from cctuning.data.messages import text_of
from cctuning.data.parallel.columns import Found, Pair, pairs_of
from cctuning.data.readers import files_in
from cctuning.data.schema import BadRow
from cctuning.data.text_files import DAMAGED, numbered_lines, open_binary, uncompressed_name
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none, matching, same

NATIVE = {"bpt", "ept", "ph", "it", "ut"}  # elements that hold formatting codes of another program, and no text
FORMATS = {".tmx": "unit", ".tbx": "entry"}  # what an element with a text in several languages is called
UNITS = ("tu", "termEntry", "conceptEntry")  # tags of those elements
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# The whole export in one file of each kind, or a file for each language (`swh_sentences.tsv`) and pair of them.
SENTENCES = re.compile(r"([a-z]{3}_)?sentences(_detailed)?\.[ct]sv")
LINKS = re.compile(r"([a-z]{3}-[a-z]{3}_)?links\.[ct]sv")
Element = ElementTree.Element


@dataclass(frozen=True)
class Part:
    """A file, or a member of a zip."""

    label: str  # for origins and messages
    name: str  # without folder and compression
    opened: Callable[[], IO[bytes]]

    @classmethod
    def of(cls, path: str | Path) -> Part:
        return cls(str(path), uncompressed_name(Path(path).name), lambda: open_binary(Path(path)))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        return numbered_lines(self.label, self.opened)


def read_lines(text: Part, reference: Part, lang: str) -> Found:
    """The pairs of two plain files, line by line."""
    for left, right in zip_longest(text.lines(), reference.lines()):
        if left is None or right is None:
            shorter, longer = (text, reference) if left is None else (reference, text)
            line = (left or right)[0]
            raise UserError(
                f"{shorter.label}: ends before line {line}, {longer.label} does not; they must match line by line."
            )
        origin = f"{text.label}:{left[0]}"
        # A byte that is not UTF-8 becomes a surrogate, which `text_of` reports.
        sides = (("text", left), ("reference", right))
        record = {name: raw.decode(errors="surrogateescape").strip() for name, (_, raw) in sides}
        try:
            if not all(text_of(side, name) for name, side in record.items()):
                raise BadRow("line", "one side is empty.")
            yield Pair(record["text"], record["reference"], lang, origin, f"{reference.label}:{right[0]}")
        except BadRow as bad:
            bad.record = record
            yield origin, bad


def read_xml(part: Part, suffix: str, language: str, lang: str | None) -> Found:
    """The pairs of every unit of a TMX file or entry of a TBX file, as `suffix` says (of an entry, the first terms).

    There is one for each language beside the reference language, or for `lang` alone. Of several texts in one language
    each gives a pair; in the reference language the first is taken.
    """
    for number, element in _elements(part, suffix[1:].upper()):
        origin, texts = f"{part.label}:{FORMATS[suffix]} {number}", _texts(element)
        first = {code: next(filter(None, found), "") for code, found in texts.items()}
        try:
            for _, reference, code in pairs_of(first, language, lang):
                yield from (Pair(text, reference, code, origin) for text in texts[code] if text)
        except BadRow as bad:
            bad.record = first
            yield origin, bad


def _texts(unit: Element) -> dict[str, list[str]]:
    """Language to texts of a TMX unit, or to first term of a TBX entry (in the elements of TBX 2 or TBX 3)."""
    texts: dict[str, list[str]] = {}
    for part in unit.iter():
        code = part.get(LANG) or part.get("lang")
        if code and _local(part) in ("tuv", "langSet", "langSec"):
            held = (one for one in part.iter() if _local(one) in ("seg", "term"))
            text = " ".join("".join(map(_text, islice(held, 1))).split())
            texts.setdefault(canonical_or_none(code) or code, []).append(text)
    return texts


def _text(element: Element) -> str:
    """An element's text without formatting codes."""
    parts = [element.text or ""]
    for child in element:
        parts += ["" if _local(child) in NATIVE else _text(child), child.tail or ""]
    return "".join(parts)


def _local(element: Element) -> str:
    """The element's name without its namespace, which TBX 3 has."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _elements(part: Part, kind: str) -> Iterator[tuple[int, Element]]:
    """The elements that hold a text in several languages, from 1 on; each is dropped from memory after use."""
    number = 0
    above: list[Element] = []
    try:
        with part.opened() as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                if _local(element) in UNITS:
                    number += 1
                    yield number, element
                    if above:
                        above[-1].clear()
    except (ElementTree.ParseError, zlib.error, zipfile.BadZipFile, *DAMAGED) as error:
        raise UserError(
            f"{part.label}: not a readable {kind} file after unit {number}: {error}; download it again."
        ) from None


def export_in(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """The files of sentences and links in a directory, or None."""
    files = files_in(folder)
    kinds = ([f for f in files if kind.fullmatch(uncompressed_name(f.name))] for kind in (SENTENCES, LINKS))
    sentences, links = kinds
    return (sentences, links) if sentences and links else None


def read_tatoeba(sentences: list[Path], links: list[Path], language: str, lang: str | None) -> Found:
    """The pairs of linked sentences in `lang` (None: any language) and the reference language.

    Sentences (id, language, text) are joined by links (id, id of a translation) in a temporary SQLite file; only their
    ids are in memory.
    """
    with (
        tempfile.TemporaryDirectory(prefix="cctuning-tatoeba-") as folder,
        closing(sqlite3.connect(Path(folder) / "sentences.sqlite")) as base,
    ):
        base.execute("pragma journal_mode = off")
        base.execute("pragma synchronous = off")
        base.execute("create table sentences (id integer primary key, origin text, lang text, text text)")
        for file in sentences:
            base.executemany("insert or replace into sentences values (?, ?, ?, ?)", _read(file, language, lang))
        own = {row[0] for row in base.execute("select id from sentences where lang is not null")}
        base.execute("create table links (text integer, reference integer, primary key (text, reference))")
        base.executemany("insert or ignore into links values (?, ?)", _links(links, own))
        rows = base.execute(
            "select one.text, other.text, one.lang, one.origin, other.origin, one.id from links "
            "join sentences one on one.id = links.text join sentences other on other.id = links.reference "
            "where other.lang is null order by links.rowid"
        )
        yield from map(Pair._make, rows)


def _links(files: list[Path], own: set[int]) -> Iterator[tuple[int, int]]:
    """The ids of a sentence in `own` and one that is not: a file may have both directions of a link or either."""
    for path, number, raw in ((file, *line) for file in files for line in numbered_lines(file)):
        one, _, other = raw.decode(errors="replace").strip().partition("\t")
        if not one.isdecimal() or not other.isdecimal():
            raise UserError(f"{path}:{number}: expected two tab-separated ids.")
        ids = int(one), int(other)
        if (ids[0] in own) != (ids[1] in own):
            yield ids if ids[0] in own else ids[::-1]


def _read(path: Path, language: str, lang: str | None) -> Iterator[tuple[int, str, str | None, str]]:
    """Id, place, language (None: the reference language) and text of the sentences in the languages needed."""
    wanted: dict[str, str | None] = {}  # Tatoeba's code to the canonical one, or None where the language is not needed
    for number, raw in numbered_lines(path):
        cells = raw.decode(errors="replace").rstrip("\r\n").split("\t")
        if len(cells) < 3 or not cells[0].isdecimal():
            raise UserError(f"{path}:{number}: expected tab-separated id, language and text.")
        code = cells[1]
        if code not in wanted:
            name = canonical_or_none(code)
            wanted[code] = name if name and (lang is None or same(name, language) or matching(lang, [name])) else None
        name = wanted[code]
        if name is not None and cells[2].strip():
            yield int(cells[0]), f"{path}:{number}", None if same(name, language) else name, cells[2].strip()
