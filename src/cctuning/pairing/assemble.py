"""Read each source of a `pair` run and find, join or make the parallel of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cctuning.data.parallel.columns import Pair
from cctuning.data.parallel.files import read_pairs
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import Row
from cctuning.data.sources import BaseSource, ParallelSource
from cctuning.errors import UserError
from cctuning.pairing import synthesis
from cctuning.pairing.candidates import Candidate, Candidates
from cctuning.pairing.joining import INDEX, ReferenceSide, key_of
from cctuning.pairing.options import PairOptions, PairSource
from cctuning.pairing.translation import open_translator

PAIR_PARTS = {"prompt": "text", "reference": "reference", "lang": "lang"}  # a row's parts as parallel text names them


@dataclass
class Account:
    """Reads one source, and counts what it gave, for the card."""

    number: int
    source: PairSource
    options: PairOptions
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)  # requests and tokens by engine

    @property
    def language(self) -> str:
        """Of the parallels."""
        return self.options.reference_language

    def candidates(self) -> Candidates:
        """The rows, each with its parallel or with the reason it has none; at most `limit` are read."""
        ways = {"given": self._given, "join": self._joined, "parallel": self._parallel}
        return ways.get(self.source.way, self._made)()

    def _limited(self, rows: Iterable[Candidate]) -> Candidates:
        for row in islice(rows, self.source.limit):
            self.read += 1
            yield row
        if not self.read:
            filtered = " with these values (where)" if self.source.where else ""
            raise UserError(f"{self.source.path}: no record to pair{filtered}.")

    def _given(self, require_reference: bool = True) -> Candidates:
        """Rows as their file has them; without a parallel they are rejected where one is required."""
        source = self.source
        reader = RowReader(self.language, source.columns, source.lang, require_reference, text_is_prompt=True)
        self.fingerprints = reader.fingerprints

        def rows() -> Candidates:
            for origin, record, row in reader.read(source, source.where, also=["id"]):
                yield Candidate.of(row, origin, record, self.number)
            self.notes += [f"{source.path}: {note}" for note in reader.notes()]

        return self._limited(rows())

    def _parallel(self) -> Candidates:
        """Pairs of parallel text as rows without a response."""
        source = self.source
        for part in source.columns:
            if part not in PAIR_PARTS:
                known = ", ".join(PAIR_PARTS)
                raise UserError(f"source {source.path}: columns: {part}: parallel text has only {known}.")
        columns = {PAIR_PARTS[part]: name for part, name in source.columns.items()}
        reference = source.english.get("path")
        given = {name: getattr(source, name) for name in ("name", "split", "lang", "where")}

        def rows() -> Candidates:
            seen: dict[str, list[str]] = {}
            for opened, found in read_pairs(
                ParallelSource(source.path, columns=columns, reference=reference, **given), self.language
            ):
                self.fingerprints |= opened.fingerprints
                seen[opened.path] = opened.notes
                if isinstance(found, Pair):
                    row = Row(found.text, None, found.lang, found.reference, None, found.origin)
                    candidate = Candidate.of(row, found.origin, {"id": found.id}, self.number)
                    candidate.reference_origin = found.reference_origin
                    yield candidate
                else:
                    yield Candidate.of(found[1], found[0], {}, self.number)
            self.notes += [note for notes in seen.values() for note in notes]

        return self._limited(rows())

    def _joined(self) -> Candidates:
        """Rows with the parallel that another file has under the same key."""
        source, side = self.source, self.source.english
        by_index = source.key == [INDEX]
        also = [] if by_index else source.key
        same = source if side["path"] == source.path else BaseSource(side["path"])
        other = BaseSource(
            side["path"],
            name=side.get("name", same.name),
            split=side.get("split", same.split),
            lang=self.language,
            columns=dict(side.get("columns", {})),
        )
        theirs = RowReader(self.language, other.columns, other.lang, text_is_prompt=True)
        reader = RowReader(self.language, source.columns, source.lang, text_is_prompt=True)
        index = ReferenceSide(source.key, other.path, theirs.read(other, side.get("where", {}), also))
        if index.unused:
            self.notes.append(
                f"{other.path}: {len(index.unused)} records cannot be joined, the first: {index.unused[0]}"
            )

        def rows() -> Candidates:
            for count, (origin, record, row) in enumerate(reader.read(source, source.where, ["id", *also])):
                found = Candidate.of(row, origin, record, self.number)
                found.reference = found.reference_response = None
                if not found.problems and found.lang != self.language:
                    index.match(found, key_of(record, count, source.key))
                    found.record = dict(record) if found.problems else None
                yield found

        yield from self._limited(rows())
        self.fingerprints = {**reader.fingerprints, **theirs.fingerprints}
        if by_index and self.read not in (source.limit, index.records):
            raise UserError(
                f"{source.path}: {self.read} records, where {other.path} has {index.records}: joined by index they "
                "would be out of step. Join by key columns, or correct the files."
            )

    def _made(self) -> Candidates:
        """Rows whose parallels are translated, or whole rows in other languages."""
        engine = self.source.engine or self.options.engine
        if not engine:
            raise UserError(
                f"source {self.source.path}: {self.source.way} needs an engine (docs/guides/translate.md)."
            )
        with closing(open_translator(engine, Path(self.options.cache_dir).expanduser())) as translator:
            if self.source.way == "translate":
                rows = self._given(require_reference=False)
                yield from synthesis.translate_prompts(rows, translator, self.language)
            else:
                self.source.lang = self.source.lang or self.language
                rows = self._given(require_reference=False)
                yield from synthesis.translate_rows(rows, translator, self.language, self.source.into)
            self.usage[translator.name] = translator.usage()
