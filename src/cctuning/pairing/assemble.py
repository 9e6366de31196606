"""Read each source of a `pair` run and find, join or make the parallel of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctuning.data.parallel.columns import Pair
from cctuning.data.parallel.files import read_pairs
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import BadRow
from cctuning.data.sources import BaseSource, ParallelSource
from cctuning.errors import UserError
from cctuning.pairing import synthesis
from cctuning.pairing.candidates import Candidate, Outcomes, Problem, Rejected
from cctuning.pairing.joining import INDEX, ReferenceSide, key_of
from cctuning.pairing.options import PairSource
from cctuning.pairing.translation import open_translator

PAIR_PARTS = {"prompt": "text", "reference": "reference", "lang": "lang"}  # a row's parts as parallel text names them


@dataclass
class Account:
    """What one source gave, for the card."""

    source: PairSource
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by reason
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)  # requests and tokens by engine


@dataclass
class Assembly:
    """Reads the sources of a run.

    Attributes:
        language: of the parallels.
        draft: directory for scratch files.
        cache_dir: where translations and answers are kept.
        engine: for sources that name none.
    """

    language: str
    draft: Path
    cache_dir: Path
    engine: Mapping[str, Any]

    def candidates(self, number: int, account: Account) -> Outcomes:
        """The rows of source `number`, each with its parallel or with the reason it has none.

        Raises:
            UserError: something cannot be read, or an engine cannot go on.
        """
        ways = {
            "given": self._given,
            "join": self._joined,
            "parallel": self._parallel,
            "translate": self._translated,
            "translation": self._translation,
            "distillation": self._distilled,
        }
        return ways[account.source.way](number, account)

    def _given(self, number: int, account: Account, require_reference: bool = True) -> Outcomes:
        """Rows as their file has them; without a parallel they are rejected where one is required."""
        source = account.source
        reader = RowReader(self.language, source.columns, source.lang, require_reference, text_is_prompt=True)
        account.fingerprints = reader.fingerprints
        count = 0
        for origin, record, row in reader.read(source, source.where, also=["id"]):
            count += 1
            if isinstance(row, BadRow):
                yield Rejected(number, origin, [Problem("row", str(row))], dict(record))
            else:
                yield Candidate.of(row, number, record.get("id"))
            if count == source.limit:
                return
        if not count:
            raise _nothing(source, bool(source.where))

    def _parallel(self, number: int, account: Account) -> Outcomes:
        """Pairs of parallel text as rows without a response."""
        source = account.source
        count = 0
        for opened, found in read_pairs(_parallel_source(source), self.language):
            account.fingerprints |= opened.fingerprints
            count += 1
            if isinstance(found, Pair):
                row = Candidate(found.text, None, found.lang, found.reference, None, found.origin, source=number)
                row.reference_origin = found.reference_origin
                row.id = found.id if isinstance(found.id, (str, int)) else None
                yield row
            else:
                origin, bad = found
                yield Rejected(number, origin, [Problem("row", str(bad))])
            if count == source.limit:
                return
        if not count:
            raise _nothing(source, bool(source.where))

    def _joined(self, number: int, account: Account) -> Outcomes:
        """Rows with the parallel that another file has under the same key."""
        source, side = account.source, account.source.english
        also = [] if source.key == [INDEX] else source.key
        same_place = side["path"] == source.path
        other = BaseSource(
            side["path"],
            name=side.get("name", source.name if same_place else None),
            split=side.get("split", source.split if same_place else "train"),
            lang=self.language,
            columns=dict(side.get("columns", {})),
        )
        theirs = RowReader(self.language, other.columns, other.lang, text_is_prompt=True)
        with closing(ReferenceSide(self.draft / f"reference-{number}.sqlite", source.key)) as index:
            index.fill(other.path, theirs.read(other, side.get("where", {}), also), self.language)
            account.notes += index.notes(other.path)
            reader = RowReader(self.language, source.columns, source.lang, text_is_prompt=True)
            count, unmatched = 0, 0
            for origin, record, row in reader.read(source, source.where, also=["id", *also]):
                if isinstance(row, BadRow):
                    yield Rejected(number, origin, [Problem("row", str(row))], dict(record))
                else:
                    candidate = Candidate.of(row, number, record.get("id"))
                    candidate.reference = candidate.reference_response = None
                    problem = None
                    if row.lang != self.language:
                        problem = index.match(candidate, key_of(record, count, source.key), self.language)
                    unmatched += problem is not None
                    yield candidate if problem is None else Rejected(number, origin, [problem], dict(record))
                count += 1
                if count == source.limit:
                    break
            account.fingerprints = {**reader.fingerprints, **theirs.fingerprints}
        if not count:
            raise _nothing(source, bool(source.where))
        if source.key == [INDEX] and count != source.limit and count != index.records:
            raise UserError(
                f"{source.path}: {count} records, where {other.path} has {index.records}: joined by index they would "
                "be out of step. Join by key columns, or correct the files."
            )
        if unmatched:
            account.notes.append(f"{source.path}: {unmatched} of {count} records found no parallel by {source.key}.")

    # -- synthetic rows ---------------------------------------------------------------------------------------------

    def _engine(self, source: PairSource) -> Any:
        options = source.engine or self.engine
        if not options:
            raise UserError(f"source {source.path}: {source.way} needs an engine (docs/guides/translate.md).")
        return open_translator(options, self.cache_dir)

    def _translated(self, number: int, account: Account) -> Outcomes:
        with closing(self._engine(account.source)) as translator:
            rows = self._given(number, account, require_reference=False)
            yield from synthesis.translate_prompts(rows, translator, self.language)
            account.usage[translator.name] = translator.usage()

    def _translation(self, number: int, account: Account) -> Outcomes:
        source = account.source
        source.lang = source.lang or self.language
        with closing(self._engine(source)) as translator:
            rows = self._given(number, account, require_reference=False)
            yield from synthesis.translate_rows(rows, translator, self.language, source.into)
            account.usage[translator.name] = translator.usage()

    def _distilled(self, number: int, account: Account) -> Outcomes:
        from cctuning.pairing.translation.chat_client import ChatClient  # imports openai

        source = account.source
        with closing(ChatClient.open(source.teacher, self.cache_dir, f"source {source.path}: teacher")) as teacher:
            rows = self._given(number, account)
            if source.answers == "row":
                yield from synthesis.distil(rows, teacher, None, self.language)
            else:
                with closing(self._engine(source)) as translator:
                    yield from synthesis.distil(rows, teacher, translator, self.language)
                    account.usage[translator.name] = translator.usage()
            account.usage[f"teacher {source.teacher.get('model')}"] = teacher.usage()


def _nothing(source: PairSource, filtered: bool) -> UserError:
    return UserError(f"{source.path}: no record to pair" + (" with these values (where)." if filtered else "."))


def _parallel_source(source: PairSource) -> ParallelSource:
    """The same source for `load_parallel`'s reader.

    Raises:
        UserError: a column is mapped that parallel text has no part for.
    """
    for part in source.columns:
        if part not in PAIR_PARTS:
            raise UserError(f"source {source.path}: columns: {part}: parallel text has only {', '.join(PAIR_PARTS)}.")
    return ParallelSource(
        source.path,
        reference=source.english.get("path"),
        name=source.name,
        split=source.split,
        lang=source.lang,
        columns={PAIR_PARTS[part]: name for part, name in source.columns.items()},
        where=source.where,
    )
