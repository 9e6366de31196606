"""The interfaces of translation: `Translator` for callers, `Engine` for models and servers.

An engine translates short segments, in any order. What every engine needs besides (splitting texts, protecting code
and links, caching, checking) is in `translator.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """A translation or another answer, or why there is none. Exactly one of `text` and `problem` is set.

    `passing`: the problem is temporary (a server was down), so it is not cached.
    """

    text: str | None
    problem: str | None = None
    passing: bool = False

    def __post_init__(self) -> None:
        if (self.text is None) == (self.problem is None):
            raise ValueError(f"exactly one of text and problem must be set, got {self!r}")


Done = Callable[[int, Answer], None]  # called with the index of a segment and its answer, from any thread


class Translator(Protocol):
    """Translates texts from one language to another."""

    name: str

    def translate(self, texts: Sequence[str], source: str, target: str) -> Iterator[Answer]:
        """One answer for each text, in the same order. `source` and `target` are language codes."""
        ...

    def usage(self) -> dict[str, int | float]:
        """Counts of requests, tokens and cache hits since this translator was opened."""
        ...

    def close(self) -> None:
        """Release connections, memory and the cache."""
        ...


class Engine(Protocol):
    """A model or a server that translates segments."""

    name: str

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """Everything besides the segment that decides its translation; part of the cache key, so never a secret.

        Raises:
            UserError: the engine does not know one of the languages, or there is no such model.
        """
        ...

    def run(self, segments: Sequence[str], source: str, target: str, done: Done) -> None:
        """Call `done` once for each segment, as soon as its answer is there."""
        ...

    def usage(self) -> dict[str, int | float]:
        """Requests, retries and tokens, where the engine knows them."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How texts are split and what is protected; part of every engine's options."""

    split: str = field(
        metadata={
            "help": "sentences: translate sentence by sentence. long: split only what is longer than max_chars.",
            "choices": ("sentences", "long"),
        }
    )
    max_chars: int = field(metadata={"help": "Longest segment, in characters.", "least": 20})
    protect_numbers: bool = field(default=False, metadata={"help": "Also keep numbers as they are, digit by digit."})
