"""Read translation memories (TMX) and glossaries (TBX, ISO 30042) as XML streams.

ElementTree opens no file that an entity names, and expat limits how far entities expand; both are errors.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO
from xml.etree import ElementTree

from cctuning.data.parallel.columns import Pair, pairs_of
from cctuning.data.readers import DAMAGED
from cctuning.data.schema import BadRow
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none

NATIVE = {"bpt", "ept", "ph", "it", "ut"}  # elements that hold formatting codes of another program, and no text
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
Element = ElementTree.Element
Opened = Callable[[], IO[bytes]]
Found = Iterator[Pair | tuple[str, BadRow]]


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
