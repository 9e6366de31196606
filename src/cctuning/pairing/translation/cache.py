"""A cache of answers in an SQLite file.

The key is a hash of everything that decides the answer: the engine with its settings, the languages, the text. So no
entry is ever out of date. With SQLite's write-ahead log an answer is safe once it is written, also if the process is
killed, and several processes may use the file. On network file systems SQLite's locks are unreliable.

Problems that would recur, such as an answer cut off at the token limit, are cached too.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.pairing.translation.base import Answer

NAME = "translations.sqlite3"
TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, text TEXT, problem TEXT) WITHOUT ROWID"


class Cache:
    """Answers by key, in `cache_dir`. Safe for threads and for several processes."""

    def __init__(self, cache_dir: Path) -> None:
        self.path = cache_dir / NAME
        self._lock = threading.Lock()
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # Autocommit: an answer is on disk when `put` returns. The timeout waits for another process that writes.
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", TABLE):
            self._execute(statement)
        self.get(b"")  # fails if the table has other columns

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be used as a cache ({error}); give a directory that can be written.")

    def _execute(self, statement: str, *values: Any) -> Any:
        """The first row of the result."""
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    @staticmethod
    def key(identity: Mapping[str, Any], *parts: str) -> bytes:
        """The key of an answer: of what decides it (JSON types), and of languages and text."""
        content = json.dumps([identity, *parts], sort_keys=True, ensure_ascii=False)
        # surrogatepass: text with half a surrogate pair is distinct text
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> Answer | None:
        """The cached answer, or None."""
        found = self._execute("SELECT text, problem FROM answers WHERE key = ?", key)
        return Answer(*found) if found else None

    def put(self, key: bytes, answer: Answer) -> None:
        """Write an answer, except a `passing` problem."""
        if not answer.passing:
            self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", key, answer.text, answer.problem)

    def count(self) -> int:
        """The number of cached answers."""
        return int(self._execute("SELECT count(*) FROM answers")[0])

    def close(self) -> None:
        """Close the file. Later calls fail."""
        with self._lock:
            self._file.close()
