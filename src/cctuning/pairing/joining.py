"""Join rows with their parallels in another data set by key.

The reference-language side is stored in a scratch SQLite file and looked up there, so neither side is held in memory.
A key with several records is used only where they all have the same prompt.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctuning.data.schema import BadRow, Row
from cctuning.errors import UserError
from cctuning.pairing.candidates import Candidate, Problem

INDEX = "index"


def key_of(record: Mapping[str, Any], number: int, key: Sequence[str]) -> str | None:
    """The record's key as text; None where a column of it is missing or empty. `5`, `5.0` and `"5"` are one key."""
    if list(key) == [INDEX]:
        return str(number)
    parts = [record.get(column) for column in key]
    if any(part is None or part == "" for part in parts):
        return None
    return json.dumps([_key_part(part) for part in parts], ensure_ascii=False, default=str)


def _key_part(part: Any) -> Any:
    if isinstance(part, (list, dict)):
        return part
    # pandas makes floats of whole numbers where one is missing
    return str(int(part)) if isinstance(part, float) and part.is_integer() else str(part)


@dataclass
class ReferenceSide:
    """The records of the reference language under their keys, in a scratch SQLite file.

    Attributes:
        records: how many there are, good or not; the position is the key where rows are joined by index.
        bad: those that are not rows, with the reason.
        without_key: good ones whose key is empty.
        repeated: keys that more than one record has.
        ambiguous: of those, keys whose records have different prompts.
    """

    path: Path
    key: Sequence[str]
    records: int = 0
    bad: list[tuple[str, BadRow]] = field(default_factory=list)
    without_key: int = 0
    repeated: int = 0
    ambiguous: int = 0

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self.table = sqlite3.connect(self.path, isolation_level=None)
        # A scratch file: it is removed with the run, so it need not survive a crash.
        self.table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
        self.table.execute("CREATE TABLE reference (key TEXT, prompt TEXT, response TEXT, origin TEXT)")

    def fill(self, path: str, rows: Iterable[tuple[str, Mapping[str, Any], Row | BadRow]], language: str) -> None:
        """Store the records of `RowReader.read`.

        Raises:
            UserError: there is no good record.
        """
        columns: list[str] = []

        def keyed() -> Iterator[tuple[str, str, str | None, str]]:
            nonlocal columns
            for number, (origin, record, row) in enumerate(rows):
                self.records, columns = number + 1, list(record)
                if isinstance(row, BadRow):
                    self.bad.append((origin, row))
                    continue
                key = key_of(record, number, self.key)
                if key is None:
                    self.without_key += 1
                else:
                    yield key, json.dumps(row.prompt, ensure_ascii=False), row.response, origin

        self.table.execute("BEGIN")
        self.table.executemany("INSERT INTO reference VALUES (?, ?, ?, ?)", keyed())
        self.table.execute("COMMIT")
        self.table.execute("CREATE INDEX keys ON reference (key)")
        repeated = "SELECT COUNT(*) FROM (SELECT 1 FROM reference GROUP BY key HAVING COUNT(*) > 1)"
        different = "SELECT COUNT(*) FROM (SELECT 1 FROM reference GROUP BY key HAVING COUNT(DISTINCT prompt) > 1)"
        self.repeated, self.ambiguous = (self.table.execute(query).fetchone()[0] for query in (repeated, different))
        if self.records == len(self.bad) + self.without_key:
            empty = f"none has a value under {', '.join(self.key)}; the last has the columns {', '.join(columns)}."
            why = f"the first: {self.bad[0][0]}: {self.bad[0][1]}" if self.bad else empty
            raise UserError(f"{path}: no record of the {language} side can be used: {why}")

    def match(self, row: Candidate, key: str | None, language: str) -> Problem | None:
        """Give `row` the parallel under `key`, or say why it has none."""
        if key is None:
            return Problem("join", f"its key is empty ({', '.join(self.key)}).")
        # SQLite takes the other columns of a group from the row that MIN names.
        query = "SELECT MIN(rowid), prompt, response, origin FROM reference WHERE key = ? GROUP BY prompt ORDER BY 1"
        found = self.table.execute(query, (key,)).fetchall()
        if not found:
            return Problem("join", f"no record of the {language} side has the key {key}.")
        if len(found) > 1:
            where = " and ".join(origin for *_, origin in found[:2])
            return Problem("join", f"the key {key} has {len(found)} different prompts on the other side: {where}.")
        _, prompt, row.reference_response, row.reference_origin = found[0]
        row.reference = json.loads(prompt)
        return None

    def notes(self, path: str) -> list[str]:
        """What the user should know of this side."""
        notes = []
        if self.bad:
            origin, bad = self.bad[0]
            notes.append(f"{path}: {len(self.bad)} records are not rows, the first: {origin}: {bad}")
        if self.without_key:
            notes.append(f"{path}: {self.without_key} records have no key.")
        if self.repeated:
            notes.append(
                f"{path}: {self.repeated} keys occur more than once, {self.ambiguous} of them with different prompts; "
                "rows with those are rejected."
            )
        return notes

    def close(self) -> None:
        """Remove the file."""
        self.table.close()
        self.path.unlink(missing_ok=True)
