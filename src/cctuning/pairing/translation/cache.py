"""What has been answered once is never asked again: a cache on disk, by content.

The key is a hash of everything that decides the answer (the engine's identity with its settings, the languages, the
text), so nothing is ever out of date: other settings are other keys. SQLite's write-ahead log makes every answer safe
the moment it is written, against a kill in the middle and against another process on the same file. (A power cut may
cost the last answers, not the file. On a network file system SQLite's locks are not to be relied on.)

A problem that would come again, such as an answer cut off at the token limit, is remembered too: it was paid for.
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
            UserError: the directory cannot be written, or the file is not a cache of ours.
        """
        self.path = cache_dir / NAME
        self._lock = threading.Lock()
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # autocommit: an answer is on disk when `put` returns. The timeout is how long another process may write.
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
            identity: what decides the answer beside the parts, as JSON has it.
            parts: the languages, the text.
        """
        content = json.dumps([identity, *parts], sort_keys=True, ensure_ascii=False)
        # surrogatepass: half a character, as a cut file may hold, is still a text of its own
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> Answer | None:
        """The answer that was given, or None."""
        with self._lock:
            found = self._file.execute("SELECT text, problem FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(*found) if found else None

    def put(self, answers: Iterable[tuple[bytes, Answer]]) -> None:
        """Keep answers, all in one transaction; those that are `passing` problems are not kept.

        Raises:
            UserError: the disk is full, or the file cannot be written any more.
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
        """How many answers there are."""
        with self._lock:
            return int(self._file.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file. Later calls fail."""
        with self._lock:
            self._file.close()
