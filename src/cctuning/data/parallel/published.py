"""Read translation memories (TMX), glossaries (TBX, ISO 30042) and Tatoeba's weekly export as streams.

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
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from cctuning.data.parallel.columns import Found, Pair, pairs_of
from cctuning.data.schema import BadRow
from cctuning.data.text_files import DAMAGED, numbered_lines, uncompressed_name
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none, matching, same

NATIVE = {"bpt", "ept", "ph", "it", "ut"}  # elements that hold formatting codes of another program, and no text
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# The whole export in one file of each kind, or a file for each language (`swh_sentences.tsv`) and pair of them.
SENTENCES = re.compile(r"([a-z]{3}_)?sentences(_detailed)?\.[ct]sv")
LINKS = re.compile(r"([a-z]{3}-[a-z]{3}_)?links\.[ct]sv")
Element = ElementTree.Element
Opened = Callable[[], IO[bytes]]


def read_xml(name: str, opened: Opened, suffix: str, language: str, lang: str | None) -> Found:
    """The pairs of every unit of a TMX file or entry of a TBX file, as `suffix` says (of an entry, the first terms).

    There is one for each language beside the reference language, or for `lang` alone.
    """
    tags, kind, texts_of = FORMATS[suffix]
    for number, element in _elements(name, opened, suffix[1:].upper(), tags):
        origin = f"{name}:{kind} {number}"
        try:
            for text, reference, code in pairs_of(texts_of(element), language, lang):
                yield Pair(text, reference, code, origin)
        except BadRow as bad:
            yield origin, bad


def _unit(unit: Element) -> dict[str, str]:
    """Language to text of a translation unit."""
    texts: dict[str, str] = {}
    for variant in unit.iter("tuv"):
        code = variant.get(LANG) or variant.get("lang") or ""
        segment = variant.find("seg")
        if code and segment is not None:
            texts[canonical_or_none(code) or code] = " ".join(_text(segment).split())
    return texts


def _text(segment: Element) -> str:
    """A segment's text without formatting codes."""
    parts = [segment.text or ""]
    for child in segment:
        parts += ["" if child.tag in NATIVE else _text(child), child.tail or ""]
    return "".join(parts)


def _entry(entry: Element) -> dict[str, str]:
    """Language to first term of a glossary entry, in the elements of TBX 2 or TBX 3."""
    texts: dict[str, str] = {}
    for section in entry.iter():
        code = section.get(LANG)
        if code and _local(section) in ("langSet", "langSec"):
            terms = [part for part in section.iter() if _local(part) == "term"]
            texts[canonical_or_none(code) or code] = " ".join("".join(terms[0].itertext()).split()) if terms else ""
    return texts


# Tags of the elements that hold a text in several languages, what they are called, and the texts of one
FORMATS = {".tmx": (("tu",), "unit", _unit), ".tbx": (("termEntry", "conceptEntry"), "entry", _entry)}


def _local(element: Element) -> str:
    """The element's name without its namespace, which TBX 3 has."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _elements(name: str, opened: Opened, kind: str, tags: tuple[str, ...]) -> Iterator[tuple[int, Element]]:
    """The elements with one of these names, numbered from 1; each is dropped from memory after use."""
    number = 0
    above: list[Element] = []
    try:
        with opened() as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                if _local(element) in tags:
                    number += 1
                    yield number, element
                    if above:
                        above[-1].clear()
    except (ElementTree.ParseError, zlib.error, zipfile.BadZipFile, *DAMAGED) as error:
        raise UserError(
            f"{name}: not a readable {kind} file after unit {number}: {error}; download it again."
        ) from None


def export_in(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """The files of sentences and links in a directory, or None."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
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
        for path, number, raw in ((f, *line) for f in links for line in numbered_lines(f)):
            one, _, other = raw.decode(errors="replace").strip().partition("\t")
            if not one.isdecimal() or not other.isdecimal():
                raise UserError(f"{path}:{number}: expected two tab-separated ids.")
            if int(one) not in own:
                continue
            find = "select origin, lang, text from sentences where id = ?"
            origin, code, text = base.execute(find, (int(one),)).fetchone()
            english = base.execute(find, (int(other),)).fetchone()
            if english is not None and english[1] is None:
                yield Pair(text, english[2], code, origin, english[0], int(one))


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
