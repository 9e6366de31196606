"""The row: what every format becomes when it is read, and what training, evaluation and pairing take.

| column | type | meaning |
| --- | --- | --- |
| `prompt` | text, or messages | what the model is asked, with all its context |
| `response` | text or null | what it learns to answer; null: the row trains the alignment alone |
| `lang` | text | language of the prompt, a canonical code (`cctuning.languages`) |
| `reference` | like `prompt`, or null | the prompt in the reference language; null: the row is in it |
| `origin` | text | where the row stands: `file:line`, or `name[split]:index` counted from 0 |
| `row` | int | its place in the data set |
| `thinking` | text | optional: reasoning before the response |
| `calls`, `tools`, `arguments` | JSON | optional: tool calls of the response, tools offered, chat template arguments |

A message has `role` and `content`, and where the data give them `thinking`, `tool_calls` (JSON in a table), `name`,
`tool_call_id` and `train` (false: an assistant turn without loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Message = dict[str, Any]
Text = str | list[Message]
CHUNK = 1000  # rows handled at once


def as_messages(text: Text) -> list[Message]:
    """Messages as they are, and plain text as one user message."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


@dataclass(slots=True)
class Row:
    """One row. `reference_response` is used only to make a row of its own in the reference language."""

    prompt: Text
    response: str | None
    lang: str
    reference: Text | None
    reference_response: str | None
    origin: str
    thinking: str | None = None
    calls: list[Any] | None = None
    tools: list[Any] | None = None
    arguments: dict[str, Any] | None = None


class BadRow(Exception):
    """A record that cannot become a row: the `field`, as the file names it, the `reason`, and what was read."""

    def __init__(self, field: str, reason: str, record: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason, self.record = field, reason, record or {}


class Skipped(NamedTuple):
    """A row that `bad_rows: skip` left out: where it stood, which field was bad, and why."""

    origin: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.field}: {self.reason}"
