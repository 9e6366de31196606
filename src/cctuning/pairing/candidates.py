"""A row on its way through `cctuning pair`: what its source gave, and why it was turned away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cctuning.data.schema import Text


@dataclass(slots=True)
class Candidate:
    """A row before the checks. `reference` None: it is in the reference language and its own parallel."""

    source: int  # its number in the recipe
    origin: str
    prompt: Text
    response: str | None
    lang: str  # canonical
    reference: Text | None
    reference_response: str | None = None
    reference_origin: str | None = None
    id: Any = None

    def as_row(self, language: str) -> dict[str, Any]:
        """The columns that `cctuning train` reads, the parallel's named after the reference language."""
        row = {} if self.id is None else {"id": self.id}
        row |= {"lang": self.lang, "prompt": self.prompt, "response": self.response}
        if self.reference is not None:
            row[f"prompt_{language}"] = self.reference
        if self.reference_response is not None:
            row[f"response_{language}"] = self.reference_response
        row["origin"] = self.origin
        if self.reference_origin is not None:
            row[f"origin_{language}"] = self.reference_origin
        return row


@dataclass(slots=True)
class Problem:
    """What a check has against a row."""

    check: str
    says: str


@dataclass(slots=True)
class Rejected:
    """A record that did not become a row, or a row that a check turned away."""

    source: int
    origin: str
    problems: list[Problem]
    row: Any = None  # what there is of it

    def as_line(self) -> dict[str, Any]:
        """A line of rejects.jsonl."""
        first = self.problems[0]
        line: dict[str, Any] = {"origin": self.origin, "reason": first.check, "says": first.says}
        if len(self.problems) > 1:
            line["also"] = [{"reason": problem.check, "says": problem.says} for problem in self.problems[1:]]
        return {**line, "row": self.row}
