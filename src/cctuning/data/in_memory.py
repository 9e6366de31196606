"""Rows handed to the trainer as a data set and not as files: the same layouts and the same checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.chat import NAMES
from cctuning.data.layouts import Layout, missing_reference, parse
from cctuning.data.messages import THINKING, plain
from cctuning.data.schema import CHUNK, BadRow
from cctuning.data.tables import EXTRA
from cctuning.errors import UserError
from cctuning.languages import UNKNOWN

if TYPE_CHECKING:
    from datasets import Dataset


LOADED = "origin"  # a column that only a data set of `load_rows` has


def check_handed(dataset: Any, where: str) -> None:
    """Raise `UserError` where a data set handed to the trainer cannot be trained on at all.

    Args:
        where: what to call it in the message.
    """
    from datasets import Dataset

    for name, one in dataset.items() if isinstance(dataset, Mapping) else [(None, dataset)]:
        label = where if name is None else f"{where} ({name})"
        if not isinstance(one, Dataset):
            advice = "a streamed one has no length and no order to draw from: load it whole (streaming=False)"
            streamed = "Iterable" in type(one).__name__
            raise UserError(
                f"{label}: expected a datasets.Dataset, got {type(one).__name__}; "
                f"{advice if streamed else 'make one with datasets.Dataset.from_list'}."
            )
        if not len(one):
            raise UserError(f"{label}: it has no row; give at least one.")


@dataclass(frozen=True)
class Reading:
    """A record of the data set -> `prompt`, `response`, `reference`, `lang`, `row` and `origin`.

    Attributes:
        layout: which column plays which part.
        found: the data set's columns.
        language: the reference language.
        required: a row in another language must have a reference.
        itself: a row in the reference language is its own parallel (`reference_weights: start`).
    """

    layout: Layout
    found: Sequence[str]
    language: str
    required: bool
    itself: bool

    @classmethod
    def of(cls, found: Sequence[str], language: str, required: bool, itself: bool, where: str) -> Reading:
        """The reading of a data set with the columns `found`; `reference` is a name of its own beside `prompt_en`.

        Args:
            where: what to call the data set in a message.

        Raises:
            UserError: two columns could play one part, or none holds a reference where one is needed.
        """
        columns = {"reference": "reference"} if "reference" in found else {}
        try:
            layout = Layout.recognise(found, columns, language)
            if not (layout.prompt or layout.messages):
                raise BadRow("prompt", f"no such column among {', '.join(found)}; nor messages, nor instruction.")
            if required and "lang" not in found and not (layout.reference or layout.reference_messages):
                raise missing_reference(layout, found, language)
        except BadRow as bad:
            raise UserError(f"{where}: {bad}") from None
        return cls(layout, found, language, required, itself)

    @property
    def messages(self) -> bool:
        """Whether prompts are conversations by their layout."""
        return self.layout.messages is not None

    def thinking(self, dataset: Dataset) -> bool:
        """Whether any response of the data set thinks before it answers, in a key or column of its own or in its text.

        Read column by column: no row is built.
        """
        parts = (self.layout.messages, self.layout.response, self.layout.thinking, "thinking")
        columns = [name for name in dict.fromkeys(parts) if name is not None and name in dataset.column_names]
        if not columns:
            return False
        tables = dataset.select_columns(columns).with_format("arrow").iter(CHUNK)
        return any(_thinks(table[name], name) for table in tables for name in columns)

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            BadRow: as `parse` does, or a reference is needed and missing.
        """
        field = self.layout.reference_messages or self.layout.reference
        alone = field is None or record.get(field) in (None, "")
        lang = self.language if alone else UNKNOWN
        row = parse(record, self.layout, "", found=self.found, lang=lang, language=self.language)
        if self.required and row.reference is None and row.lang != self.language:
            raise missing_reference(self.layout, self.found, self.language)
        if LOADED in self.found and isinstance(record.get("prompt"), list):
            row.prompt = [
                plain(turn) for turn in record["prompt"]
            ]  # which turns are learned was settled as it was read
        if row.response is None and record.get("calls"):
            row.response = ""
        own = row.prompt if self.itself and row.lang == self.language else None
        return {
            "prompt": row.prompt,
            "response": row.response,
            "reference": row.reference if row.reference is not None else own,
            "lang": row.lang if record.get("lang") else "",
            "row": record.get("row", -1),
            "origin": record.get("origin"),
            **{name: value for name in EXTRA if (value := getattr(row, name) or record.get(name))},
        }


def _thinks(texts: pa.ChunkedArray, name: str) -> bool:
    kind = texts.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _thinks(pc.list_flatten(texts), name)
    if pa.types.is_struct(kind):
        return any(_thinks(pc.struct_field(texts, part.name), part.name) for part in kind)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    if name in THINKING:
        found = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    else:
        found = pc.match_substring_regex(texts, rf"</({NAMES})>")
    return bool(pc.any(found).as_py())
