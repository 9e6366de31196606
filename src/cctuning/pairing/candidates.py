"""A row on its way through `cctuning pair`: what its source gave, and why it was rejected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cctuning.data.schema import BadRow, Row


@dataclass(slots=True)
class Problem:
    """What a check has against a row: the `check` and an explanation."""

    check: str
    says: str


@dataclass(slots=True)
class Candidate(Row):
    """A row before the checks. `reference` None: it is in the reference language and is its own parallel."""

    source: int = 0  # its number in the recipe
    reference_origin: str | None = None
    id: Any = None
    record: Any = None  # as it was read, where it is not a row or found no parallel
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, row: Row | BadRow, origin: str, record: Any, source: int) -> Candidate:
        """The row that was read from a record, or the record with its problem."""
        if isinstance(row, BadRow):
            bad = cls("", None, "", None, None, origin, source=source, record=dict(record))
            bad.problems.append(Problem("row", str(row)))
            return bad
        id = record.get("id")
        values: dict[str, Any] = {name: getattr(row, name) for name in Row.__slots__}
        return cls(**values, source=source, id=id if isinstance(id, (str, int)) else None)

    def as_row(self, language: str) -> dict[str, Any]:
        """The columns that `cctuning train` reads, the parallel's named after the reference language."""
        row = {} if self.id is None else {"id": self.id}
        response: Any = self.response
        if self.calls:
            response = [{"role": "assistant", "content": self.response or "", "tool_calls": self.calls}]
        row |= {"lang": self.lang, "prompt": self.prompt, "response": response}
        optional = {
            f"prompt_{language}": self.reference,
            f"response_{language}": self.reference_response,
            "thinking": self.thinking,
            "tools": self.tools,
            "chat_template_kwargs": self.arguments,
            "origin": self.origin,
            f"origin_{language}": self.reference_origin,
        }
        return row | {name: value for name, value in optional.items() if value is not None}


Candidates = Iterator[Candidate]
