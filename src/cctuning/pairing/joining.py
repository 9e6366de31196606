"""Join: the English side of a row, found by its key in another data set.

The English side is laid into an SQLite file of the draft and looked up there, so that neither side is held in memory.
A key that several English records have is of use only where they all say the same.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctuning.data.schema import BadRow, Text
from cctuning.errors import UserError
from cctuning.pairing.records import Reader

INDEX = "index"
BATCH = 1000


@dataclass(slots=True)
class English:
    """What the English side has under a key."""

    prompt: Text
    response: str | None
    origin: str


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
class EnglishSide:
    """The English records under their keys.

    Attributes:
        records: how many there are, good or not; their number in order is the key where rows are joined by index.
        bad: those that are no rows, with what is wrong.
        without_key: good ones whose key is empty.
    """

    path: Path
    key: Sequence[str]
    records: int = 0
    bad: list[tuple[str, BadRow]] = field(default_factory=list)
    without_key: int = 0
    repeated: int = 0  # keys that more than one record has
    ambiguous: int = 0  # of those, keys whose records have different prompts

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self.table = sqlite3.connect(self.path, isolation_level=None)
        # A scratch file: nothing of it outlives the run, so nothing need survive a crash.
        self.table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
        self.table.execute("CREATE TABLE english (key TEXT, prompt TEXT, response TEXT, origin TEXT)")

    def fill(self, reader: Reader, language: str) -> None:
        """Read the English side.

        Raises:
            UserError: it has no good record.
        """
        held: list[tuple[str, str, str | None, str]] = []
        columns: list[str] = []
        self.table.execute("BEGIN")
        for number, (origin, record, row) in enumerate(reader.rows(language)):
            self.records, columns = number + 1, list(record)
            if isinstance(row, BadRow):
                self.bad.append((origin, row))
                continue
            key = key_of(record, number, self.key)
            if key is None:
                self.without_key += 1
                continue
            held.append((key, json.dumps(row.prompt, ensure_ascii=False), row.response, origin))
            if len(held) == BATCH:
                self.table.executemany("INSERT INTO english VALUES (?, ?, ?, ?)", held)
                held = []
        self.table.executemany("INSERT INTO english VALUES (?, ?, ?, ?)", held)
        self.table.execute("COMMIT")
        self.table.execute("CREATE INDEX keys ON english (key)")
        repeated = "SELECT COUNT(*) FROM (SELECT 1 FROM english GROUP BY key HAVING COUNT(*) > 1)"
        different = "SELECT COUNT(*) FROM (SELECT 1 FROM english GROUP BY key HAVING COUNT(DISTINCT prompt) > 1)"
        self.repeated, self.ambiguous = (self.table.execute(query).fetchone()[0] for query in (repeated, different))
        if self.records == len(self.bad) + self.without_key:
            empty = f"none has a value under {', '.join(self.key)}; the last has the columns {', '.join(columns)}."
            why = f"the first: {self.bad[0][0]}: {self.bad[0][1]}" if self.bad else empty
            raise UserError(f"{reader.path}: no record of the {language} side can be used: {why}")

    def find(self, key: str) -> list[English]:
        """What stands under a key, each prompt once."""
        # SQLite takes the other columns of a group from the row that MIN names.
        query = "SELECT MIN(rowid), prompt, response, origin FROM english WHERE key = ? GROUP BY prompt ORDER BY 1"
        found = self.table.execute(query, (key,)).fetchall()
        return [English(json.loads(prompt), response, origin) for _, prompt, response, origin in found]

    def close(self) -> None:
        """Remove the file."""
        self.table.close()
        self.path.unlink(missing_ok=True)
