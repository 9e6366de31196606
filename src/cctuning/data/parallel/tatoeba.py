"""Read Tatoeba's weekly export: join sentences (id, language, text) by links (id, id of a translation).

The sentences are joined in a temporary SQLite file; only their ids are in memory.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cctuning.data.parallel.columns import Pair
from cctuning.data.readers import numbered_lines, uncompressed_name
from cctuning.data.schema import BadRow
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none, matching, same

# The whole export in one file of each kind, or a file for each language (`swh_sentences.tsv`) and pair of them.
SENTENCES = re.compile(r"([a-z]{3}_)?sentences(_detailed)?\.[ct]sv")
LINKS = re.compile(r"([a-z]{3}-[a-z]{3}_)?links\.[ct]sv")


def export_in(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """The files of sentences and links in a directory, or None."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    kinds = ([f for f in files if kind.fullmatch(uncompressed_name(f.name))] for kind in (SENTENCES, LINKS))
    sentences, links = kinds
    return (sentences, links) if sentences and links else None


def read_tatoeba(
    sentences: list[Path], links: list[Path], language: str, lang: str | None
) -> Iterator[Pair | tuple[str, BadRow]]:
    """The pairs of linked sentences in `lang` (None: any language) and the reference language."""
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
            yield int(cells[0]), f"{path}:{number}", None if same(name, language) else lang or name, cells[2].strip()
