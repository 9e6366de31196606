"""The ways to the English side: from a source of the recipe to candidates, with an account of what was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctuning.data.schema import BadRow
from cctuning.errors import UserError
from cctuning.pairing import making, parallel
from cctuning.pairing.candidates import Candidate, Problem, Rejected
from cctuning.pairing.joining import INDEX, EnglishSide, key_of
from cctuning.pairing.options import PairSource
from cctuning.pairing.records import Reader
from cctuning.pairing.translation import ChatClient, open_translator

Outcome = Candidate | Rejected


@dataclass
class Account:
    """What one source gave, for the card."""

    source: PairSource
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by reason
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)  # what engines were asked, by engine


@dataclass
class Ways:
    """What all sources of a run share.

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

    def candidates(self, number: int, account: Account) -> Iterator[Outcome]:
        """The rows of source `number`, each with its parallel or with why it has none.

        Raises:
            UserError: something cannot be read, or an engine cannot go on.
        """
        source = account.source
        if source.way == "join":
            return self._joined(number, account)
        if source.way == "parallel":
            return parallel.candidates(account, number, self.language)
        if source.way == "translate":
            return self._translated(number, account)
        if source.way == "translation":
            return self._translation(number, account)
        if source.way == "distillation":
            return self._distilled(number, account)
        return self._rows(number, account, needs=True)

    @staticmethod
    def _reader(source: PairSource, also: Sequence[str] = (), needs: bool = False) -> Reader:
        given = (source.path, source.name, source.split, source.lang, source.columns, source.where, source.limit)
        return Reader(*given, also=also, needs=needs)

    def _rows(self, number: int, account: Account, needs: bool) -> Iterator[Outcome]:
        """Rows as their file has them; `needs`: one without a parallel is rejected."""
        reader = self._reader(account.source, needs=needs)
        for origin, record, row in reader.rows(self.language):
            account.fingerprints = reader.fingerprints
            if isinstance(row, BadRow):
                yield Rejected(number, origin, [Problem("row", str(row))], dict(record))
                continue
            yield Candidate(
                number,
                origin,
                row.prompt,
                row.response,
                row.lang,
                row.reference,
                row.reference_response,
                None,
                _id(record),
            )

    def _joined(self, number: int, account: Account) -> Iterator[Outcome]:
        source, side = account.source, account.source.english
        english = Reader(
            side["path"],
            side.get("name", source.name if side["path"] == source.path else None),
            side.get("split", source.split if side["path"] == source.path else "train"),
            self.language,
            side.get("columns", {}),
            side.get("where", {}),
            also=() if source.key == [INDEX] else tuple(source.key),
        )
        with closing(EnglishSide(self.draft / f"english-{number}.sqlite", source.key)) as index:
            index.fill(english, self.language)
            account.notes += _told(index, english)
            reader = self._reader(source, english.also)
            place, unmatched = -1, 0
            for place, (origin, record, row) in enumerate(reader.rows(self.language)):
                found = self._join(number, origin, record, row, place, index, source)
                unmatched += isinstance(found, Rejected) and found.problems[0].check == "join"
                yield found
            account.fingerprints = {**reader.fingerprints, **english.fingerprints}
        if source.key == [INDEX] and reader.exhausted and place + 1 != index.records:
            raise UserError(
                f"{source.path}: {place + 1} records, where {english.path} has {index.records}: by index they would "
                "be shifted somewhere. Join by key columns, or mend the files."
            )
        if unmatched:
            account.notes.append(
                f"{source.path}: {unmatched} of {place + 1} records found no parallel by {source.key}."
            )

    def _join(
        self,
        number: int,
        origin: str,
        record: Mapping[str, Any],
        row: Any,
        place: int,
        index: EnglishSide,
        source: Any,
    ) -> Outcome:
        def away(check: str, says: str) -> Rejected:
            return Rejected(number, origin, [Problem(check, says)], dict(record))

        if isinstance(row, BadRow):
            return away("row", str(row))
        out = Candidate(number, origin, row.prompt, row.response, row.lang, None, None, None, _id(record))
        if row.lang == self.language:
            return out
        key = key_of(record, place, source.key)
        if key is None:
            return away("join", f"its key is empty ({', '.join(source.key)}).")
        found = index.find(key)
        if not found:
            return away("join", f"no record of the {self.language} side has the key {key}.")
        if len(found) > 1:
            where = " and ".join(one.origin for one in found[:2])
            return away("join", f"the key {key} has {len(found)} different prompts on the other side: {where}.")
        out.reference, out.reference_response, out.reference_origin = (
            found[0].prompt,
            found[0].response,
            found[0].origin,
        )
        return out

    # -- rows that are made -----------------------------------------------------------------------------------------

    def _engine(self, source: PairSource) -> Any:
        options = source.engine or self.engine
        if not options:
            raise UserError(f"source {source.path}: {source.way} needs an engine (docs/guides/translate.md).")
        return open_translator(options, self.cache_dir)

    def _translated(self, number: int, account: Account) -> Iterator[Outcome]:
        with closing(self._engine(account.source)) as translator:
            rows = self._rows(number, account, needs=False)
            yield from making.translate(rows, translator, self.language)
            account.usage[translator.name] = translator.usage()

    def _translation(self, number: int, account: Account) -> Iterator[Outcome]:
        source = account.source
        source.lang = source.lang or self.language
        with closing(self._engine(source)) as translator:
            rows = self._rows(number, account, needs=False)
            yield from making.translation(rows, translator, self.language, source.into)
            account.usage[translator.name] = translator.usage()

    def _distilled(self, number: int, account: Account) -> Iterator[Outcome]:
        source = account.source
        with closing(ChatClient.open(source.teacher, self.cache_dir, f"source {source.path}: teacher")) as teacher:
            rows = self._rows(number, account, needs=True)
            if source.answers == "row":
                yield from making.distillation(rows, teacher, None, self.language)
            else:
                with closing(self._engine(source)) as translator:
                    yield from making.distillation(rows, teacher, translator, self.language)
                    account.usage[translator.name] = translator.usage()
            account.usage[f"teacher {source.teacher.get('model')}"] = teacher.usage()


def _id(record: Mapping[str, Any]) -> Any:
    found = record.get("id")
    return found if isinstance(found, (str, int)) else None


def _told(index: EnglishSide, english: Reader) -> list[str]:
    """What a person should know of the English side."""
    notes = []
    if index.bad:
        origin, bad = index.bad[0]
        notes.append(f"{english.path}: {len(index.bad)} records are no rows, the first: {origin}: {bad}")
    if index.without_key:
        notes.append(f"{english.path}: {index.without_key} records have no key.")
    if index.repeated:
        notes.append(
            f"{english.path}: {index.repeated} keys stand more than once, {index.ambiguous} of them with different "
            "prompts; rows with those are rejected."
        )
    return notes
