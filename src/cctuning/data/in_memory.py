"""Read data sets that are passed to the trainer from Python.

Rows of `load_rows` are in the schema already and are not checked again. Any other data set may have any layout that
files may have, and goes through the same parser and the same checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.chat import NAMES
from cctuning.data.layouts import Layout, missing_reference
from cctuning.data.messages import THINKING
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import CHUNK, BadRow
from cctuning.data.tables import EXTRA, is_checked
from cctuning.errors import UserError
from cctuning.languages import UNKNOWN

if TYPE_CHECKING:
    from datasets import Dataset


def check_dataset(dataset: Any, where: str) -> None:
    """Raise `UserError` where the trainer cannot use a data set at all.

    Args:
        dataset: a `datasets.Dataset`, or a mapping of names to such.
        where: what to call it in the error.
    """
    from datasets import Dataset

    for name, one in dataset.items() if isinstance(dataset, Mapping) else [(None, dataset)]:
        label = where if name is None else f"{where} ({name})"
        if not isinstance(one, Dataset):
            advice = "a streamed data set has no length and no order to draw from: load it whole (streaming=False)"
            streamed = "Iterable" in type(one).__name__
            raise UserError(
                f"{label}: expected a datasets.Dataset, got {type(one).__name__}; "
                f"{advice if streamed else 'make one with datasets.Dataset.from_list'}."
            )
        if not len(one):
            raise UserError(f"{label}: it has no rows; give at least one.")


@dataclass(frozen=True)
class Reading:
    """Turns a record of a data set into a mapping with `prompt`, `response`, `reference`, `lang`, `row` and `origin`.

    Attributes:
        reader: parses records, and says which column plays which part.
        layout: which column plays which part.
        required: a row in another language must have a reference.
        itself: a row in the reference language is its own reference (`reference_weights: start`).
        checked: the rows are those of `load_rows`.
    """

    reader: RowReader
    layout: Layout
    found: tuple[str, ...]
    required: bool
    itself: bool
    checked: bool

    @classmethod
    def of(cls, dataset: Dataset, language: str, required: bool, itself: bool, where: str) -> Reading:
        """How to read a data set. A column `reference` holds references, as `prompt_<language>` does.

        Args:
            dataset: any data set of rows.
            language: the reference language.
            required: see above. itself: see above.
            where: what to call the data set in an error.

        Raises:
            UserError: two columns could play one part, or none holds a reference where one is needed.
        """
        found = tuple(dataset.column_names)
        columns = {"reference": "reference"} if "reference" in found else {}
        reader = RowReader(language, columns)
        try:
            layout = reader.layout(found)
            if not (layout.prompt or layout.messages):
                raise BadRow("prompt", f"no such column among {', '.join(found)}; nor messages, nor instruction.")
            if required and "lang" not in found and not (layout.reference or layout.reference_messages):
                raise missing_reference(layout, found, language)
        except BadRow as bad:
            raise UserError(f"{where}: {bad}") from None
        return cls(reader, layout, found, required, itself, is_checked(dataset))

    @property
    def messages(self) -> bool:
        """Whether prompts are conversations by their layout."""
        return self.layout.messages is not None

    def thinking(self, dataset: Dataset) -> bool:
        """Whether any response has thinking, in a key or column of its own or in its text. Reads whole columns."""
        parts = (self.layout.messages, self.layout.response, self.layout.thinking, "thinking")
        columns = [name for name in dict.fromkeys(parts) if name is not None and name in dataset.column_names]
        if not columns:
            return False
        tables = dataset.select_columns(columns).with_format("arrow").iter(CHUNK)
        return any(_thinks(table[name], name) for table in tables for name in columns)

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            BadRow: as `layouts.parse` does, or a reference is needed and missing.
        """
        row = dict(record) if self.checked else self._parsed(record)
        language = self.reader.language
        if row["reference"] is None and row["lang"] != language and self.required:
            raise missing_reference(self.layout, self.found, language)
        if self.itself and row["reference"] is None and row["lang"] == language:
            row["reference"] = row["prompt"]
        return row | {"lang": row["lang"] if record.get("lang") else ""}

    def _parsed(self, record: Mapping[str, Any]) -> dict[str, Any]:
        field = self.layout.reference_messages or self.layout.reference
        alone = field is None or record.get(field) in (None, "")
        self.reader.lang = self.reader.language if alone else UNKNOWN
        row = self.reader.parse(record, "", self.found)
        if isinstance(row, BadRow):
            raise row
        return {
            "prompt": row.prompt,
            "response": "" if row.response is None and record.get("calls") else row.response,
            "reference": row.reference,
            "lang": row.lang,
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
