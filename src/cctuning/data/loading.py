"""Load rows into one `datasets.Dataset` in the schema of `cctuning.data.schema`: from sources, or another data set.

`load_rows` reads the sources of a recipe and mixes them by weight; `in_schema` reads a data set that is passed to the
trainer from Python, with the same parser and checks. Rows are in a temporary Arrow file, mapped into memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.chat import NAMES
from cctuning.data.checks import warnings_of
from cctuning.data.layouts import missing_reference
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import CHUNK, BadRow, Row, Skipped
from cctuning.data.sources import LoadReport, Source, SourceReport
from cctuning.data.tables import EXTRA, dataset_of, is_checked, table_of
from cctuning.data.text import Seen
from cctuning.errors import UserError
from cctuning.languages import UNKNOWN, canonical

ENDED = re.compile(rf"</({NAMES})>")  # the end of thinking in a text


def load_rows(
    sources: Sequence[Source | Mapping[str, Any] | str],
    *,
    reference_language: str = "en",
    seed: int = 0,
    require_reference: bool = True,
    bad_rows: str = "error",
    to_answer: bool = False,
) -> tuple[datasets.Dataset, LoadReport]:
    """Read, check and mix the sources.

    Args:
        sources: in the order in which their rows follow each other.
        reference_language: rows in it are their own parallel; it also names the reference's columns (`prompt_en`).
        seed: of the samples that weights draw.
        require_reference: False for a recipe that does not use references; rows without one are then kept.
        bad_rows: `skip`: leave out bad rows in all sources.
        to_answer: a conversation that does not end with an answer is a prompt for one. Otherwise it is read up to its
            last answer, with a note.

    Returns:
        The rows in the schema of `cctuning.data.schema`, and the report. All prompts and references are messages
        where any row of any source has messages.

    Raises:
        UserError: a file cannot be read, or a row is bad and its source does not say to skip such rows.
    """
    if isinstance(sources, (str, Mapping, Source)):
        sources = [sources]
    named = Source.each(sources, "data", bad_rows)
    reference_language = canonical(reference_language, "reference_language")
    report, tables, seen = LoadReport(reference_language), [], Seen()
    for number, source in enumerate(named):
        account = SourceReport(source.path)
        reader = RowReader(reference_language, source.columns, source.lang, require_reference, to_answer=to_answer)
        table = table_of(_rows(reader, source, seen, account, report))
        if source.weight != 1:
            table = table.take(source.drawn(table.num_rows, [number, seed & (2**63 - 1)]))
        account.rows, account.without_response = table.num_rows, table["response"].null_count
        account.with_response = account.rows - account.without_response
        counts = pc.value_counts(table["lang"].combine_chunks()).to_pylist()
        account.languages = {count["values"]: count["counts"] for count in counts}
        report.sources.append(account)
        tables.append(table)
    for name in ("rows", "with_response", "without_response"):
        setattr(report, name, sum(getattr(account, name) for account in report.sources))
    table = pa.concat_tables(tables)
    if require_reference:
        report.notes += warnings_of(table, reference_language)
    return dataset_of(table), report


def _rows(reader: RowReader, source: Source, seen: Seen, account: SourceReport, report: LoadReport) -> Iterator[Row]:
    """The good rows of a source, each followed by its reference row where asked for."""
    kept = 0
    for origin, _, row in reader.read(source):
        if isinstance(row, BadRow):
            report.skip(source, account, origin, row)
            continue
        kept, account.read = kept + 1, account.read + 1
        yield row
        own = source.include_reference_rows and row.reference is not None and row.reference_response is not None
        if own and seen.add(json.dumps(row.reference)):
            account.read, account.reference_rows = account.read + 1, account.reference_rows + 1
            sides: Any = {"prompt": row.reference, "response": row.reference_response, "lang": reader.language}
            yield replace(row, **sides, reference=None, reference_response=None, thinking=None, calls=None)
        if kept == source.limit:
            break
    if not kept:
        first = report.first_bad(account)
        why = f"all {account.skipped} are bad, the first: {first}" if first else "it is empty."
        raise UserError(f"{source.path}: no row to train on: {why}")
    account.columns, account.fingerprints = reader.parts, reader.fingerprints
    parts, columns = reader.parts, ", ".join(reader.found)
    notes = reader.notes()
    if "response" not in parts and "messages" not in parts and not reader.to_answer:
        notes.append(f"no column is read as the response, so its rows train the alignment alone (columns: {columns}).")
    report.notes += [f"{source.path}: {note}" for note in notes]
    if source.include_reference_rows and "reference_response" not in parts and not account.reference_rows:
        raise UserError(
            f"{source.path}: include_reference_rows: no response in the reference language among "
            f"{columns}; map it under columns: reference_response, or leave the option out."
        )


def check_dataset(dataset: Any, where: str) -> None:
    """Raise `UserError` for a data set (or one of a mapping) that is streamed, empty or no data set at all."""
    for name, one in dataset.items() if isinstance(dataset, Mapping) else [(None, dataset)]:
        label = where if name is None else f"{where} ({name})"
        if not isinstance(one, datasets.Dataset):
            advice = "a streamed data set has no length and no order to draw from: load it whole (streaming=False)"
            kind = type(one).__name__
            if "Iterable" not in kind:
                makers = {
                    "tuple": "of what load_rows returns take the first",
                    "DataFrame": "datasets.Dataset.from_pandas",
                }
                advice = makers.get(kind, "make one with datasets.Dataset.from_list")
            raise UserError(f"{label}: expected a datasets.Dataset, got {kind}; {advice}.")
        if not len(one):
            raise UserError(f"{label}: it has no rows; give at least one.")


def in_schema(
    dataset: datasets.Dataset,
    language: str,
    where: str,
    *,
    required: bool = False,
    bad_rows: str = "error",
    parallel: bool = False,
    notes: list[str] | None = None,
) -> tuple[datasets.Dataset, list[Skipped]]:
    """The rows of a data set in the schema of `cctuning.data.schema`, and those left out.

    A column `reference` holds references, as `prompt_<language>` does. Rows without language and reference are taken
    to be in the reference language; `lang` is empty for rows with a reference that name none.

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
            load = "; cctuning.data.load_parallel reads other layouts" if parallel else ""
            raise BadRow("prompt", f"no such column among {', '.join(found)}; nor {nor}{load}.")
        if required and "lang" not in found and not (layout.reference or layout.reference_messages):
            raise missing_reference(layout, found, language)
    except BadRow as bad:
        raise UserError(f"{where}: {bad}") from None
    field, numbers, skipped = layout.reference_messages or layout.reference, [], list[Skipped]()

    def rows() -> Iterator[Row]:
        for number, record in zip(row_numbers(dataset), dataset, strict=True):
            origin = str(record.get("origin") or f"{where}: row {number}")
            reader.lang = UNKNOWN if field is not None and record.get(field) else language
            row = reader.parse(record, origin, found)
            if isinstance(row, BadRow):
                skipped.append(Skipped(origin, row.field, row.reason))
                if bad_rows == "error":
                    raise UserError(str(skipped[-1]))
                continue
            numbers.append(number)
            if reader.lang == UNKNOWN and not record.get("lang"):
                row.lang = ""
            for name in EXTRA:  # in the schema, but not checked: put together of several data sets, for example
                setattr(row, name, getattr(row, name) or record.get(name))
            if row.response is None and row.calls:
                row.response = ""
            yield row

    table = table_of(rows())
    if not table.num_rows:
        raise UserError(f"{where}: no usable row of {len(dataset)}, the first: {skipped[0]}")
    nameless = 0 if parallel else pc.sum(pc.equal(table["lang"], "")).as_py()
    if notes is not None:
        notes += [f"{where}: {note}" for note in reader.notes()]
        if nameless:
            told = f"{nameless} rows have a reference and no lang, so reports call their language unknown"
            notes.append(f"{where}: {told}; add a column lang.")
    return dataset_of(table, numbers), skipped


def row_numbers(dataset: datasets.Dataset) -> list[int]:
    """The column `row`; the rows' places where there is none, or it holds anything but numbers."""
    given: list[Any] = list(dataset["row"]) if "row" in dataset.column_names else [None]
    numbered = all(isinstance(number, int) and number >= 0 for number in given)
    return given if numbered else list(range(len(dataset)))


def _lacks_reference(dataset: datasets.Dataset, language: str) -> bool:
    table = dataset.with_format("arrow")[:]
    missing = pc.and_(pc.is_null(table["reference"]), pc.not_equal(table["lang"], language))
    return bool(pc.any(missing).as_py())


def has_thinking(dataset: datasets.Dataset) -> bool:
    """Whether any assistant turn of rows in the schema has thinking, as a separate part or in its text."""
    names = [name for name in ("prompt", "response", "thinking") if name in dataset.column_names]
    batches = dataset.select_columns(names).with_format("arrow").iter(CHUNK)
    for row in (row for batch in batches for row in batch.to_pylist()):
        turns = [*(row["prompt"] if isinstance(row["prompt"], list) else ())]
        turns.append({"thinking": row.get("thinking"), "content": row.get("response")})
        if any((turn.get("thinking") or "").strip() or ENDED.search(turn["content"] or "") for turn in turns):
            return True
    return False
