"""Parallel text without answers: plain files line by line (Moses, OPUS), TMX. The rows train the alignment alone.

Both are read as they stream; a TMX that declares entities is refused, because an entity may stand for a file of this
machine or unfold without end.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat

from cctuning.data.rows import fingerprint, numbered_lines
from cctuning.errors import UserError
from cctuning.languages import canonical, is_code, matches, same
from cctuning.pairing.candidates import Candidate, Problem, Rejected

NATIVE = {"bpt", "ept", "ph", "it", "ut"}  # TMX elements that hold another program's codes and no text
LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def is_tmx(path: str) -> bool:
    """By its name."""
    return path.lower().removesuffix(".gz").endswith(".tmx")


def known(path: Path) -> str:
    """The fingerprint of a file.

    Raises:
        UserError: there is no such file.
    """
    try:
        return fingerprint(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a file.") from None


def moses(path: Path, english: Path, lang: str, number: int) -> Iterator[Candidate | Rejected]:
    """Rows of two files whose lines are parallel.

    Raises:
        UserError: the files have not the same number of lines: from some line on they would be shifted.
    """
    sides = zip_longest(numbered_lines(path), numbered_lines(english))
    for line, (left, right) in enumerate(sides, 1):
        if left is None or right is None:
            shorter, longer = (path, english) if left is None else (english, path)
            raise UserError(f"{shorter}: ends before line {line}, {longer} goes on; the two must be line by line.")
        origin = f"{path}:{line}"
        try:
            text, other = left[1].decode(), right[1].decode()
        except UnicodeDecodeError:
            yield Rejected(number, origin, [Problem("row", "not UTF-8; re-encode the file.")])
            continue
        yield _candidate(number, origin, f"{english}:{line}", text, other, lang)


def tmx(path: Path, lang: str | None, language: str, number: int) -> Iterator[Candidate | Rejected]:
    """Rows of a TMX: one for each unit and each language it has beside the reference language.

    Args:
        path: plain or gzip.
        lang: take this language alone.
        language: of the parallels.
        number: of the source.

    Raises:
        UserError: it is no XML, or declares entities.
    """
    unit = 0
    try:
        _refuse_entities(path)
        with _open(path) as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start" and element.tag == "body":
                    body = element
                if event != "end" or element.tag != "tu":
                    continue
                unit += 1
                yield from _unit(element, f"{path}:unit {unit}", lang, language, number)
                body.clear()  # units that are done with would otherwise stay in memory
    except (ElementTree.ParseError, expat.ExpatError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: not a TMX that can be read, after unit {unit}: {error}; fetch it again.") from None


def _unit(
    element: ElementTree.Element, origin: str, lang: str | None, language: str, number: int
) -> Iterator[Candidate | Rejected]:
    texts: dict[str, str] = {}
    for variant in element.iter("tuv"):
        code = variant.get(LANG) or variant.get("lang") or ""
        segment = variant.find("seg")
        if code and segment is not None:
            texts[canonical(code) if is_code(code) else code] = " ".join(_text(segment).split())
    known = [code for code in texts if is_code(code)]
    english = sorted((code for code in known if matches(language, code)), key=lambda code: code != language)
    others = [code for code in known if not same(language, code)]
    if lang is not None:
        others = [code for code in others if code == lang] or [code for code in others if matches(lang, code)]
    if not english or not others:
        has = ", ".join(texts) or "none"
        says = f"no text in {language if not english else lang or 'another language'}; it has {has}."
        yield Rejected(number, origin, [Problem("row", says)])
        return
    for code in others:
        yield _candidate(number, origin, origin, texts[code], texts[english[0]], lang or code)


def _text(segment: ElementTree.Element) -> str:
    """A segment's text without the codes of the program that it came from."""
    parts = [segment.text or ""]
    for child in segment:
        parts += ["" if child.tag in NATIVE else _text(child), child.tail or ""]
    return "".join(parts)


def _candidate(
    number: int, origin: str, english_origin: str, text: str, english: str, lang: str
) -> Candidate | Rejected:
    if not text.strip() or not english.strip():
        return Rejected(number, origin, [Problem("row", "one side is empty.")], {"text": text, "english": english})
    return Candidate(number, origin, text.strip(), None, lang, english.strip(), None, english_origin)


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _refuse_entities(path: Path) -> None:
    """Read up to the root element, before which alone entities can be declared."""
    parser = expat.ParserCreate()
    begun = False

    def declared(name: str, *rest: object) -> None:
        raise UserError(f"{path}: declares the entity {name!r}; refused. Write its text out instead.")

    def root(name: str, attributes: object) -> None:
        nonlocal begun
        begun = True

    parser.EntityDeclHandler, parser.StartElementHandler = declared, root
    with _open(path) as file:
        while not begun and (block := file.read(1 << 16)):
            parser.Parse(block)
