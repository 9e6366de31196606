"""Read the sources of a recipe, mix them by weight and return one `datasets.Dataset` with a report.

The rows are written to a temporary Arrow file and mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.checks import warnings_of
from cctuning.data.reports import LoadReport, SourceReport, drawn
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import BadRow, Row
from cctuning.data.sources import Source
from cctuning.data.tables import dataset_of, table_of
from cctuning.errors import UserError
from cctuning.languages import canonical


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
    report, tables, seen = LoadReport(reference_language), [], set[bytes]()
    for number, source in enumerate(named):
        account = SourceReport(source.path)
        reader = RowReader(reference_language, source.columns, source.lang, require_reference, to_answer=to_answer)
        table = table_of(_rows(reader, source, seen, account, report))
        if source.weight != 1:
            table = table.take(drawn(source, table.num_rows, [number, seed & (2**63 - 1)], "rows"))
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


def _rows(
    reader: RowReader, source: Source, seen: set[bytes], account: SourceReport, report: LoadReport
) -> Iterator[Row]:
    """The good rows of a source, each followed by its reference row where asked for."""
    kept = 0
    for origin, _, row in reader.read(source):
        if isinstance(row, BadRow):
            report.skip(source, account, origin, row)
            continue
        kept, account.read = kept + 1, account.read + 1
        yield row
        if source.include_reference_rows and row.reference is not None and row.reference_response is not None:
            key = hashlib.blake2b(json.dumps(row.reference).encode(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                account.read, account.reference_rows = account.read + 1, account.reference_rows + 1
                sides: Any = {"prompt": row.reference, "response": row.reference_response, "lang": reader.language}
                yield replace(row, **sides, reference=None, reference_response=None, thinking=None, calls=None)
        if kept == source.limit:
            break
    if not kept:
        raise UserError(f"{source.path}: no row to train on: {report.all_bad(account) or 'it is empty.'}")
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
