"""What a translation is, what translates, and what the engines behind it owe.

Two faces. `Translator` is what the rest of the package sees: texts in, translations in the same order out. `Engine` is
what a model or a server implements: short segments in, one answer each, in whatever order they come. Everything
between the two (splitting, protecting, remembering, checking) is in `translator.py`, once for all engines.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cctuning.errors import UserError, nearest


@dataclass(frozen=True)
class Translated:
    """A translation, or why there is none. Exactly one of the two is set."""

    text: str | None
    problem: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.problem is None):
            raise ValueError(f"exactly one of text and problem must be set, got {self!r}")


@dataclass(frozen=True)
class Answer:
    """What an engine or a server said to one request. Exactly one of `text` and `problem` is set.

    `passing`: the problem is of the moment (a server that was down), so asking again may help. Any other problem was
    paid for and would come again: it is remembered as a translation is.
    """

    text: str | None
    problem: str | None = None
    passing: bool = False


Done = Callable[[int, Answer], None]  # the index of the segment, and its answer; called from any thread


class Translator(Protocol):
    """Translates texts from one language to another."""

    name: str

    def translate(self, texts: Sequence[str], source: str, target: str) -> Iterator[Translated]:
        """One `Translated` for each text, in the same order. `source` and `target` are BCP 47 tags."""
        ...

    def usage(self) -> dict[str, int | float]:
        """What has been asked, answered, remembered and paid since this translator was opened."""
        ...

    def close(self) -> None:
        """Give back connections, memory and the cache."""
        ...


class Engine(Protocol):
    """A model or a server that translates segments."""

    name: str

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """All that decides what a segment becomes, beside the segment: part of the cache key, so never a secret.

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
        """Give back what it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How texts are cut and what is protected; part of every engine's options."""

    split: str = field(
        metadata={
            "help": "sentences: translate sentence by sentence. long: cut only what is longer than max_chars.",
            "choices": ("sentences", "long"),
        }
    )
    max_chars: int = field(metadata={"help": "Longest segment, in characters.", "least": 20})
    protect_numbers: bool = field(default=False, metadata={"help": "Also keep numbers as they are, digit by digit."})


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def read_options(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Build an options dataclass from what a recipe holds.

    Field metadata: `help`, `choices` (allowed values), `least` (smallest number).

    Raises:
        UserError: an unknown name, one that is missing, or a value of the wrong type or out of range.
    """
    known = {option.name: option for option in fields(cls)}
    hints = typing.get_type_hints(cls)
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"{where}: unknown option {name!r}; known: {', '.join(known)}.{nearest(str(name), list(known))}"
            )
        allowed = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        plain = tuple(typing.get_origin(one) or one for one in allowed)
        if float in plain and type(value) is int:
            plain += (int,)
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            names = " or ".join("nothing" if one is types.NoneType else one.__name__ for one in plain)
            raise UserError(f"{where}: {name}: expected {names}, got {value!r}.")
        choices, least = known[name].metadata.get("choices"), known[name].metadata.get("least")
        if choices and value not in choices:
            raise UserError(f"{where}: {name}: expected {' or '.join(choices)}, got {value!r}.")
        if least is not None and value is not None and not value >= least:
            raise UserError(f"{where}: {name}: expected at least {least}, got {value!r}.")
    for name, option in known.items():
        if name not in options and option.default is MISSING and option.default_factory is MISSING:
            raise UserError(f"{where}: {name}: missing. {option.metadata['help']}")
    return cls(**options)
