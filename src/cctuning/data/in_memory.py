"""Read data sets that are passed to the trainer from Python: in any layout of files, with the same parser and checks.

Rows of `load_rows` and pairs of `load_parallel` are not parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from cctuning.data.chat import NAMES
from cctuning.data.layouts import missing_reference
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import CHUNK, BadRow, Row, Skipped
from cctuning.data.tables import EXTRA, dataset_of, is_checked, table_of
from cctuning.errors import UserError
from cctuning.languages import UNKNOWN

if TYPE_CHECKING:
    from datasets import Dataset

ENDED = re.compile(rf"</({NAMES})>")  # the end of thinking in a text


def check_dataset(dataset: Any, where: str) -> None:
    """Raise `UserError` for a data set (or one of a mapping) that is streamed, empty or no data set at all."""
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


def in_schema(
    dataset: Dataset,
    language: str,
    where: str,
    *,
    required: bool = False,
    bad_rows: str = "error",
    parallel: bool = False,
    notes: list[str] | None = None,
) -> tuple[Dataset, list[Skipped]]:
    """The rows of a data set in the schema of `cctuning.data.schema`, and those left out.

    A column `reference` holds references, as `prompt_<language>` does. Rows without language and reference are taken
    to be in the reference language; `lang` is empty for rows that name none.

    Args:
        required: a row in another language must have a reference.
        bad_rows: `error` or `skip`.
        parallel: it is parallel text, whose prompt may be called `text`.
        notes: what the user should know is appended to it.
    """
    found = tuple(dataset.column_names)
    if is_checked(dataset) and not (required and _lacks_reference(dataset, language)):
        return (dataset.rename_column("text", "prompt") if "text" in found else dataset), []
    columns = {"reference": "reference"} if "reference" in found else {}
    reader = RowReader(language, columns, require_reference=required, text_is_prompt=parallel)
    try:
        layout = reader.layout(found)
        if not (layout.prompt or layout.messages):
            nor = f"text with reference or text_{language}" if parallel else "messages, nor instruction"
            raise BadRow("prompt", f"no such column among {', '.join(found)}; nor {nor}.")
        if required and "lang" not in found and not (layout.reference or layout.reference_messages):
            raise missing_reference(layout, found, language)
    except BadRow as bad:
        raise UserError(f"{where}: {bad}") from None
    field, numbers, skipped = layout.reference_messages or layout.reference, [], list[Skipped]()

    def rows() -> Iterator[Row]:
        for place, record in enumerate(dataset):
            number = record.get("row", place)
            origin = str(record.get("origin") or f"row {number}")
            reader.lang = UNKNOWN if field is not None and record.get(field) else language
            row = reader.parse(record, origin, found)
            if isinstance(row, BadRow):
                skipped.append(Skipped(origin, row.field, row.reason))
                if bad_rows == "error":
                    raise UserError(str(skipped[-1]))
                continue
            numbers.append(number)
            row.lang = row.lang if record.get("lang") else ""
            for name in EXTRA:  # in the schema, but not checked: put together of several data sets, for example
                setattr(row, name, getattr(row, name) or record.get(name))
            if row.response is None and row.calls:
                row.response = ""
            yield row

    table = table_of(rows())
    if not table.num_rows:
        raise UserError(f"{where}: no usable row of {len(dataset)}, the first: {skipped[0]}")
    if notes is not None:
        notes += [f"{where}: {note}" for note in reader.notes()]
    return dataset_of(table, numbers), skipped


def _lacks_reference(dataset: Dataset, language: str) -> bool:
    table = dataset.with_format("arrow")[:]
    missing = pc.and_(pc.is_null(table["reference"]), pc.not_equal(table["lang"], language))
    return bool(pc.any(missing).as_py())


def has_thinking(dataset: Dataset) -> bool:
    """Whether any assistant turn of rows in the schema has thinking, in a part of its own or in its text."""
    names = [name for name in ("prompt", "response", "thinking") if name in dataset.column_names]
    batches = dataset.select_columns(names).with_format("arrow").iter(CHUNK)
    for row in (row for batch in batches for row in batch.to_pylist()):
        turns = [*(row["prompt"] if isinstance(row["prompt"], list) else ())]
        turns.append({"thinking": row.get("thinking"), "content": row.get("response")})
        if any((turn.get("thinking") or "").strip() or ENDED.search(turn["content"] or "") for turn in turns):
            return True
    return False
