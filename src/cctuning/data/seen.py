"""What was met before, at a few bytes each."""

from __future__ import annotations

import hashlib

import numpy as np


class Seen:
    """A set of 64-bit hashes at about 16 bytes each: sorted, with a small set of the latest beside."""

    def __init__(self) -> None:
        self._sorted, self._latest = np.empty(0, np.uint64), set[int]()

    def add(self, *words: str) -> bool:
        """Add what the words hash to; whether it is new."""
        text = "\x1f".join(words).encode(errors="surrogatepass")
        value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._latest or (place < len(self._sorted) and int(self._sorted[place]) == value):
            return False
        self._latest.add(value)
        if len(self._latest) > max(50_000, len(self._sorted) // 8):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted, self._latest = np.sort(np.concatenate([self._sorted, latest])), set()
        return True
