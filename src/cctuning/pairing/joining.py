"""Join rows with their parallels in another data set by key.

The reference-language side is stored in a scratch SQLite file and looked up there, so neither side is held in memory.
A key with several records is used only where they all have the same prompt.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class ReferenceSide:
    """The records of the reference language under their keys, in a scratch SQLite file.

    Attributes:
        records: how many there are, good or not; the position is the key where rows are joined by index.
        unused: number of those that are not rows or have no key.
        first_unused: the first of them, with the reason.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, key
        self.records, self.unused, self.first_unused = 0, 0, ""
        self.table = sqlite3.connect(path, isolation_level=None)
        # A scratch file: it is removed with the run, so it need not survive a crash.
        self.table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
        self.table.execute("CREATE TABLE reference (key TEXT, prompt TEXT, response TEXT, origin TEXT)")

    def fill(self, path: str, rows: Iterable[tuple[str, Mapping[str, Any], Row | BadRow]]) -> None:
        """Store the records of `RowReader.read`."""

        def keyed() -> Iterator[tuple[str, str, str | None, str]]:
            for number, (origin, record, row) in enumerate(rows):
                self.records += 1
                key = key_of(record, number, self.key)
                if not isinstance(row, BadRow) and key is not None:
                    yield key, json.dumps(row.prompt, ensure_ascii=False), row.response, origin
                    continue
                self.unused += 1
                no_key = f"no value under {', '.join(self.key)}; it has the columns {', '.join(record)}."
                self.first_unused = self.first_unused or f"{origin}: {row if isinstance(row, BadRow) else no_key}"

        self.table.execute("BEGIN")
        self.table.executemany("INSERT INTO reference VALUES (?, ?, ?, ?)", keyed())
        self.table.execute("COMMIT")
        self.table.execute("CREATE INDEX keys ON reference (key)")
        if self.records == self.unused:
            raise UserError(f"{path}: no record can be joined; the first: {self.first_unused or 'it is empty.'}")

    def match(self, row: Candidate, key: str | None) -> None:
        """Give `row` the parallel under `key`, or the reason why it has none as its problem."""
        # SQLite takes the other columns of a group from the row that MIN names.
        query = "SELECT MIN(rowid), prompt, response, origin FROM reference WHERE key = ? GROUP BY prompt ORDER BY 1"
        found = self.table.execute(query, (key,)).fetchall()
        if len(found) == 1:
            _, prompt, row.reference_response, row.reference_origin = found[0]
            row.reference = json.loads(prompt)
            return
        if key is None:
            says = f"its key is empty ({', '.join(self.key)})."
        elif not found:
            says = f"no record of the other side has the key {key}."
        else:
            where = " and ".join(origin for *_, origin in found[:2])
            says = f"the key {key} has {len(found)} different prompts on the other side: {where}."
        row.problems.append(Problem("join", says))

    def notes(self, path: str) -> list[str]:
        """A note on the records that cannot be used."""
        return [f"{path}: {self.unused} records cannot be joined, the first: {self.first_unused}"] * bool(self.unused)

    def close(self) -> None:
        """Remove the file."""
        self.table.close()
        self.path.unlink(missing_ok=True)
