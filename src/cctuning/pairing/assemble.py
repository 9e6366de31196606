"""Read each source of a `pair` run and find, join or make the parallel of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
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
from cctuning.pairing.options import PairSource
from cctuning.pairing.translation import Translator, open_translator

PAIR_PARTS = {"prompt": "text", "reference": "reference", "lang": "lang"}  # a row's parts as parallel text names them


@dataclass
class Account:
    """A source and what it gave, for the card."""

    number: int
    source: PairSource
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)  # requests and tokens by engine

    def limited(self, rows: Iterable[Candidate]) -> Candidates:
        """At most `limit` rows."""
        for row in islice(rows, self.source.limit):
            self.read += 1
            yield row
        if not self.read:
            filtered = " with these values (where)" if self.source.where else ""
            raise UserError(f"{self.source.path}: no record to pair{filtered}.")


@dataclass
class Assembly:
    """Reads the sources of a run.

    Attributes:
        language: of the parallels.
        cache_dir: where translations and answers are kept.
        engine: for sources that name none.
    """

    language: str
    cache_dir: Path
    engine: Mapping[str, Any]

    def candidates(self, account: Account) -> Candidates:
        """The rows of a source, each with its parallel or with the reason it has none."""
        ways = {
            "given": self._given,
            "join": self._joined,
            "parallel": self._parallel,
            "translate": self._translated,
            "translation": self._translation,
        }
        return ways[account.source.way](account)

    def _given(self, account: Account, require_reference: bool = True) -> Candidates:
        """Rows as their file has them; without a parallel they are rejected where one is required."""
        source = account.source
        reader = RowReader(self.language, source.columns, source.lang, require_reference, text_is_prompt=True)
        account.fingerprints = reader.fingerprints
        found = reader.read(source, source.where, also=["id"])
        return account.limited(Candidate.of(row, origin, record, account.number) for origin, record, row in found)

    def _parallel(self, account: Account) -> Candidates:
        """Pairs of parallel text as rows without a response."""
        source = account.source
        for part in source.columns:
            if part not in PAIR_PARTS:
                known = ", ".join(PAIR_PARTS)
                raise UserError(f"source {source.path}: columns: {part}: parallel text has only {known}.")
        columns = {PAIR_PARTS[part]: name for part, name in source.columns.items()}
        reference = source.english.get("path")
        given = {name: getattr(source, name) for name in ("name", "split", "lang", "where")}

        def rows() -> Candidates:
            for opened, found in read_pairs(
                ParallelSource(source.path, columns=columns, reference=reference, **given), self.language
            ):
                account.fingerprints |= opened.fingerprints
                if isinstance(found, Pair):
                    row = Row(found.text, None, found.lang, found.reference, None, found.origin)
                    candidate = Candidate.of(row, found.origin, {"id": found.id}, account.number)
                    candidate.reference_origin = found.reference_origin
                    yield candidate
                else:
                    yield Candidate.of(found[1], found[0], {}, account.number)

        return account.limited(rows())

    def _joined(self, account: Account) -> Candidates:
        """Rows with the parallel that another file has under the same key."""
        source, side = account.source, account.source.english
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
            account.notes.append(
                f"{other.path}: {len(index.unused)} records cannot be joined, the first: {index.unused[0]}"
            )

        def rows() -> Candidates:
            for count, (origin, record, row) in enumerate(reader.read(source, source.where, ["id", *also])):
                found = Candidate.of(row, origin, record, account.number)
                found.reference = found.reference_response = None
                if not found.problems and found.lang != self.language:
                    index.match(found, key_of(record, count, source.key))
                    found.record = dict(record) if found.problems else None
                yield found

        yield from account.limited(rows())
        account.fingerprints = {**reader.fingerprints, **theirs.fingerprints}
        if by_index and account.read not in (source.limit, index.records):
            raise UserError(
                f"{source.path}: {account.read} records, where {other.path} has {index.records}: joined by index they "
                "would be out of step. Join by key columns, or correct the files."
            )

    # -- synthetic rows ---------------------------------------------------------------------------------------------

    @contextmanager
    def _translator(self, account: Account) -> Iterator[Translator]:
        """The source's engine; what it used goes into the account."""
        options = account.source.engine or self.engine
        if not options:
            source = account.source
            raise UserError(f"source {source.path}: {source.way} needs an engine (docs/guides/translate.md).")
        with closing(open_translator(options, self.cache_dir)) as translator:
            yield translator
            account.usage[translator.name] = translator.usage()

    def _translated(self, account: Account) -> Candidates:
        with self._translator(account) as translator:
            rows = self._given(account, require_reference=False)
            yield from synthesis.translate_prompts(rows, translator, self.language)

    def _translation(self, account: Account) -> Candidates:
        account.source.lang = account.source.lang or self.language
        with self._translator(account) as translator:
            rows = self._given(account, require_reference=False)
            yield from synthesis.translate_rows(rows, translator, self.language, account.source.into)
