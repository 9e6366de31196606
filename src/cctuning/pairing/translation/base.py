"""The base class of translation engines.

An engine translates short segments. What every engine needs besides (splitting texts, protecting code and links,
caching, checking) is in `translator.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cctuning.settings import option


@dataclass(frozen=True)
class Answer:
    """A translation or another answer, or the reason why there is none: one of `text` and `problem` is None.

    `passing`: the problem is temporary (a server was down), so it is not cached.
    """

    text: str | None
    problem: str | None = None
    passing: bool = False


Done = Callable[[int, Answer], None]  # called with the index of a segment and its answer, from any thread


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How texts are split and what is protected; part of every engine's options."""

    split: str = option(
        "long",
        "sentences: translate sentence by sentence. long: split only what is longer than max_chars.",
        choices=("sentences", "long"),
    )
    max_chars: int = option(3000, "Longest segment, in characters.", least=20)


class Engine:
    """A model, a server or a function that translates segments."""

    name: str
    options: SegmentOptions

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """Everything besides the segment that decides its translation; part of the cache key, so never a secret."""
        raise NotImplementedError

    def run(self, segments: Sequence[str], source: str, target: str, done: Done) -> None:
        """Call `done` once for each segment, as soon as its answer is there."""
        raise NotImplementedError

    def usage(self) -> dict[str, int | float]:
        """Requests, retries and tokens, where the engine knows them."""
        return {}

    def close(self) -> None:
        """Release memory and connections."""
