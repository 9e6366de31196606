"""A row on its way through `cctuning pair`: what its source gave, and why it was rejected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from cctuning.data.schema import Row


@dataclass(slots=True)
class Candidate(Row):
    """A row before the checks. `reference` None: it is in the reference language and is its own parallel."""

    source: int = 0  # its number in the recipe
    reference_origin: str | None = None
    id: Any = None

    @classmethod
    def of(cls, row: Row, source: int, id: Any) -> Candidate:
        """A row of source number `source`, with what its record has as `id`."""
        values = {field.name: getattr(row, field.name) for field in fields(row)}
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


@dataclass(slots=True)
class Problem:
    """What a check has against a row: the `check` and an explanation."""

    check: str
    says: str


@dataclass(slots=True)
class Rejected:
    """A record that did not become a row, or a row that failed a check."""

    source: int
    origin: str
    problems: list[Problem]
    row: Any = None  # the row or the record, as far as it was read

    @classmethod
    def by(cls, problem: Problem, row: Candidate, language: str) -> Rejected:
        """A candidate that a problem rejects."""
        return cls(row.source, row.origin, [problem], row.as_row(language))

    def as_line(self) -> dict[str, Any]:
        """A line of rejects.jsonl."""
        first, *rest = ({"reason": problem.check, "says": problem.says} for problem in self.problems)
        line: dict[str, Any] = {"origin": self.origin, **first}
        return line | ({"also": rest} if rest else {}) | {"row": self.row}


Outcome = Candidate | Rejected
Outcomes = Iterator[Outcome]
