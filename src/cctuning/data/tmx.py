"""TMX, the exchange format of translation memories, as it streams.

A file that declares entities is refused, because an entity may stand for a file of this machine or unfold without end.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat

from cctuning.data.compressed import DAMAGED
from cctuning.data.parallel_columns import Pair, pairs_of
from cctuning.data.parallel_langs import code_of
from cctuning.data.rows import BadRow
from cctuning.errors import UserError

NATIVE = {"bpt", "ept", "ph", "it", "ut"}  # elements that hold another program's codes and no text
LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def read_tmx(
    name: str, opened: Callable[[], IO[bytes]], language: str, lang: str | None
) -> Iterator[Pair | tuple[str, BadRow]]:
    """The pairs of every unit: one for each language that it has beside the reference language.

    Args:
        name: for origins and messages.
        opened: opens the file, decompressed.
        language: the reference language.
        lang: take this language alone.

    Raises:
        UserError: it is no XML, or declares entities.
    """
    for number, unit in streamed(name, opened, "TMX", ("tu",)):
        origin = f"{name}:unit {number}"
        try:
            for text, reference, code in pairs_of(_texts(unit), language, lang):
                yield Pair(text, reference, code, origin)
        except BadRow as bad:
            yield origin, bad


def streamed(
    name: str, opened: Callable[[], IO[bytes]], kind: str, tags: Collection[str]
) -> Iterator[tuple[int, ElementTree.Element]]:
    """The elements with one of these names, whatever their namespace, numbered; each is forgotten after its turn.

    Args:
        name: for messages.
        opened: opens the file, decompressed.
        kind: what the format is called.
        tags: of elements that do not stand in one another.

    Raises:
        UserError: it is no XML, or declares entities.
    """
    number = 0
    above: list[ElementTree.Element] = []
    try:
        _refuse_entities(name, opened)
        with opened() as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                if element.tag.rpartition("}")[2] in tags:
                    number += 1
                    yield number, element
                    if above:
                        above[-1].clear()  # elements that are done with would otherwise stay in memory
    except (ElementTree.ParseError, expat.ExpatError, zlib.error, zipfile.BadZipFile, *DAMAGED) as error:
        raise UserError(
            f"{name}: not a {kind} that can be read, after unit {number}: {error}; fetch it again."
        ) from None


def _texts(unit: ElementTree.Element) -> dict[str, str]:
    texts: dict[str, str] = {}
    for variant in unit.iter("tuv"):
        code = variant.get(LANG) or variant.get("lang") or ""
        segment = variant.find("seg")
        if code and segment is not None:
            texts[code_of(code)] = " ".join(_text(segment).split())
    return texts


def _text(segment: ElementTree.Element) -> str:
    """A segment's text without the codes of the program that it came from."""
    parts = [segment.text or ""]
    for child in segment:
        parts += ["" if child.tag in NATIVE else _text(child), child.tail or ""]
    return "".join(parts)


def _refuse_entities(name: str, opened: Callable[[], IO[bytes]]) -> None:
    """Read up to the root element, before which alone entities can be declared."""
    parser = expat.ParserCreate()
    begun = False

    def declared(entity: str, *rest: object) -> None:
        raise UserError(f"{name}: declares the entity {entity!r}; refused. Write its text out instead.")

    def root(tag: str, attributes: object) -> None:
        nonlocal begun
        begun = True

    parser.EntityDeclHandler, parser.StartElementHandler = declared, root
    with opened() as file:
        while not begun and (block := file.read(1 << 16)):
            parser.Parse(block)
