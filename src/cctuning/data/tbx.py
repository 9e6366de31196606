"""TBX (ISO 30042), the exchange format of glossaries, in its old and new spelling, as it streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO
from xml.etree import ElementTree

from cctuning.data.parallel_columns import Pair, pairs_of
from cctuning.data.parallel_langs import code_of
from cctuning.data.rows import BadRow
from cctuning.data.tmx import LANG, streamed

ENTRIES, LANGUAGES = ("termEntry", "conceptEntry"), ("langSet", "langSec")


def read_tbx(
    name: str, opened: Callable[[], IO[bytes]], language: str, lang: str | None
) -> Iterator[Pair | tuple[str, BadRow]]:
    """The first term of each language of every entry, beside the reference language's.

    Raises:
        UserError: it is no XML, or declares entities.
    """
    for number, entry in streamed(name, opened, "TBX", ENTRIES):
        origin = f"{name}:entry {number}"
        texts: dict[str, str] = {}
        for section in entry.iter():
            if _local(section) in LANGUAGES and section.get(LANG):
                terms = [part for part in section.iter() if _local(part) == "term"]
                texts[code_of(section.get(LANG, ""))] = " ".join("".join(terms[0].itertext()).split()) if terms else ""
        try:
            for text, reference, code in pairs_of(texts, language, lang):
                yield Pair(text, reference, code, origin)
        except BadRow as bad:
            yield origin, bad


def _local(element: ElementTree.Element) -> str:
    """The element's name without its namespace, which the new spelling has."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
