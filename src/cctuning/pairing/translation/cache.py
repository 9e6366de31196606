"""A cache of answers on disk.

The key is a hash of everything that decides the answer: the engine with its settings, the languages, the text. So no
entry is ever out of date. With SQLite's write-ahead log an answer is safe once it is written, also if the process is
killed, and several processes may use the file. A power failure may lose the last answers; on network file systems
SQLite's locks are unreliable.

Problems that would recur, such as an answer cut off at the token limit, are cached too.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.pairing.translation.base import Answer

NAME = "translations.sqlite3"


class Cache:
    """Answers by key, in `cache_dir`. Safe for threads and for several processes."""

    def __init__(self, cache_dir: Path) -> None:
        """Open or create it.

        Raises:
            UserError: the directory cannot be written, or the file is not such a cache.
        """
        self.path = cache_dir / NAME
        self._lock = threading.Lock()
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # Autocommit: an answer is on disk when `put` returns. The timeout waits for another process that writes.
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, text TEXT, problem TEXT) WITHOUT ROWID"
            )
            self._file.execute("SELECT key, text, problem FROM answers LIMIT 1").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be used as a cache ({error}); give a directory that can be written.")

    @staticmethod
    def key(identity: Mapping[str, Any], *parts: str) -> bytes:
        """The key of an answer.

        Args:
            identity: what decides the answer besides the parts, as JSON types.
            parts: languages and text.
        """
        content = json.dumps([identity, *parts], sort_keys=True, ensure_ascii=False)
        # surrogatepass: text with half a surrogate pair is distinct text
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> Answer | None:
        """The cached answer, or None."""
        with self._lock:
            found = self._file.execute("SELECT text, problem FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(*found) if found else None

    def put(self, answers: Iterable[tuple[bytes, Answer]]) -> None:
        """Write answers in one transaction, except `passing` problems.

        Raises:
            UserError: the file cannot be written.
        """
        rows = [(key, answer.text, answer.problem) for key, answer in answers if not answer.passing]
        try:
            with self._lock:
                self._file.execute("BEGIN IMMEDIATE")
                with self._file:  # commits, or rolls back
                    self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def count(self) -> int:
        """The number of cached answers."""
        with self._lock:
            return int(self._file.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file. Later calls fail."""
        with self._lock:
            self._file.close()
