"""Where rows come from: the sources a recipe names, mixed by weight into one `datasets.Dataset`, with an account.

The rows lie on disk (`on_disk.py`) and are mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.checks import doubts
from cctuning.data.layouts import Layout, check_columns, missing_reference, parse, unused_parallel
from cctuning.data.messages import context_columns
from cctuning.data.readers import Records, open_records
from cctuning.data.schema import BadRow, Row, Skipped
from cctuning.data.sources import Source
from cctuning.data.tables import READ, batches, dataset_of
from cctuning.errors import UserError
from cctuning.languages import canonical


@dataclass
class SourceReport:
    """What one source gave. Counts are of rows that take part, after `weight`; `read` is of good rows, before it."""

    path: str
    read: int = 0
    rows: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    with_response: int = 0
    without_response: int = 0
    unused_parallels: int = 0  # rows labelled as in the reference language, whose parallel says something else
    reference_rows: int = 0  # among `read`: those made from a reference and its own response
    skipped: int = 0
    columns: dict[str, str] = field(default_factory=dict)  # part to column, as recognised
    unread_keys: dict[str, int] = field(default_factory=dict)  # of messages, with how many of them hold something
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass
class LoadReport:
    """The account of a load: counts per source, every skipped row, and notes a person should see."""

    reference_language: str
    sources: list[SourceReport] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(source.rows for source in self.sources)

    @property
    def with_response(self) -> int:
        """Rows that carry LM loss."""
        return sum(source.with_response for source in self.sources)

    @property
    def without_response(self) -> int:
        """Rows that train the alignment alone."""
        return sum(source.without_response for source in self.sources)

    @property
    def languages(self) -> dict[str, int]:
        """Rows per language, the most frequent first."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.languages)
        return dict(total.most_common())

    @property
    def fingerprints(self) -> dict[str, str]:
        """File (or hub data set) to its fingerprint, over all sources."""
        return {name: value for source in self.sources for name, value in source.fingerprints.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        totals = {name: getattr(self, name) for name in ("rows", "with_response", "without_response", "languages")}
        skipped = [skip._asdict() for skip in self.skipped]
        return {**asdict(self), **totals, "skipped": skipped}


def load_rows(
    sources: Sequence[Source | Mapping[str, Any] | str],
    *,
    reference_language: str = "en",
    seed: int = 0,
    require_reference: bool = True,
) -> tuple[datasets.Dataset, LoadReport]:
    """Read, check and mix the sources.

    Args:
        sources: in the order in which their rows follow each other.
        reference_language: rows in it are their own parallel; it also names the reference's columns (`prompt_en`).
        seed: of the samples that weights draw.
        require_reference: False for a recipe that does not use references; rows without one are then kept.

    Returns:
        The data set, and the account. Columns: `prompt` and `reference` (text, or messages where any row of any
        source has messages; `reference` null where the row is its own parallel), `response` (null: the row trains
        the alignment alone), `lang`, `origin` (file:line, or name[split]:index from 0) and `row` (its place in the
        data set); and where any row has them `thinking`, `calls`, `tools` and `arguments`, as `tables` says.

    Raises:
        UserError: a file cannot be read, or a row is bad and its source does not say to skip such rows.
    """
    if isinstance(sources, (str, Mapping, Source)):
        sources = [sources]
    if not sources:
        raise UserError("sources: none given; name at least one file, directory or hub data set.")
    named = [Source.from_dict(source, f"sources[{number}]") for number, source in enumerate(sources)]
    reference_language = canonical(reference_language, "reference_language")
    report, tables, seen = LoadReport(reference_language), [], set[bytes]()
    for number, source in enumerate(named):
        account = SourceReport(source.path)
        rows = _rows(source, reference_language, require_reference, seen, account, report)
        table = _mix(pa.Table.from_batches(batches(rows), READ), source, [number, seed & (2**63 - 1)])
        account.rows, account.without_response = table.num_rows, table["response"].null_count
        account.with_response = account.rows - account.without_response
        counts = pc.value_counts(table["lang"].combine_chunks()).to_pylist()
        account.languages = {count["values"]: count["counts"] for count in counts}
        report.sources.append(account)
        tables.append(table)
    table = pa.concat_tables(tables)
    if require_reference:
        report.notes += doubts(table, reference_language)
    return dataset_of(table), report


def _rows(
    source: Source,
    language: str,
    require_reference: bool,
    seen: set[bytes],
    account: SourceReport,
    report: LoadReport,
) -> Iterator[Row]:
    """The good rows of a source, each followed by its reference row where asked for."""
    met: dict[str, None] = {}  # every column of every record, in order
    kept, first_reason = 0, ""
    for records in open_records(source.path, source.name, source.split):
        account.fingerprints |= records.fingerprints
        for origin, found in _parsed(records, source, language, require_reference, met, account):
            if isinstance(found, BadRow):
                line = f"{origin}: {found.field}: {found.reason}"
                if source.bad_rows == "error":
                    raise UserError(f"{line} (Or set bad_rows: skip for this source to leave out such rows.)")
                account.skipped, first_reason = account.skipped + 1, first_reason or line
                report.skipped.append(Skipped(origin, found.field, found.reason))
                continue
            kept, account.read = kept + 1, account.read + 1
            yield found
            if source.include_reference_rows and found.reference is not None and found.reference_response is not None:
                key = hashlib.blake2b(json.dumps(found.reference).encode(), digest_size=16).digest()
                if key not in seen:
                    seen.add(key)
                    account.read, account.reference_rows = account.read + 1, account.reference_rows + 1
                    yield Row(found.reference, found.reference_response, language, None, None, found.origin)
            if kept == source.limit:
                break
        if kept == source.limit:
            break
    if not kept:
        why = f"all {account.skipped} are bad, the first: {first_reason}" if first_reason else "it is empty."
        raise UserError(f"{source.path}: no row to train on: {why}")
    check_columns(list(met), source.columns, source.path)
    parts = account.columns
    if source.include_reference_rows and "reference_response" not in parts and not account.reference_rows:
        raise UserError(
            f"{source.path}: include_reference_rows: no response in the reference language among {', '.join(met)}; "
            "map it under columns: reference_response, or leave the option out."
        )
    unread = context_columns(list(met), {*parts.values()})
    if unread:
        report.notes.append(
            f"{source.path}: not read, though by its name it may be a part of what the model is told: "
            f"{', '.join(unread)}. What is read: {', '.join(f'{column} ({part})' for part, column in parts.items())}."
        )
    if account.unread_keys:
        keys = ", ".join(f"{key} ({count})" for key, count in account.unread_keys.items())
        report.notes.append(f"{source.path}: keys of messages that are not read: {keys}.")
    if account.unused_parallels:
        report.notes.append(
            f"{source.path}: {account.unused_parallels} of {kept} rows are labelled {language}, the reference "
            f"language, and have a parallel ({parts.get('reference') or parts.get('reference_messages')}) that says "
            "something else; it is not used. If they are in another language, mend their lang."
        )
    if "response" not in parts and "messages" not in parts:
        report.notes.append(
            f"{source.path}: no column is read as the response, so its {kept} rows train the alignment alone "
            f"(columns: {', '.join(met)})."
        )


def _parsed(
    records: Records,
    source: Source,
    language: str,
    require_reference: bool,
    met: dict[str, None],
    account: SourceReport,
) -> Iterator[tuple[str, Row | BadRow]]:
    layouts: dict[tuple[str, ...], Layout] = {}
    wanted = set(records.columns or ())
    if records.columns is not None:
        check_columns(records.columns, source.columns, source.path)
        met.update(dict.fromkeys(records.columns))
        try:
            wanted = set(Layout.recognise(records.columns, source.columns, language).used().values())
        except BadRow as bad:
            raise UserError(f"{source.path}: {bad}") from None
    for origin, record in records.iterate(wanted):
        if isinstance(record, BadRow):
            yield origin, record
            continue
        found = tuple(records.columns or record)
        try:
            if found not in layouts:
                met.update(dict.fromkeys(found))
                layouts[found] = Layout.recognise(found, source.columns, language)
                account.columns.update(layouts[found].used())
            layout = layouts[found]
            row = parse(
                record, layout, origin, found=found, lang=source.lang, language=language, unread=account.unread_keys
            )
            if require_reference and row.reference is None and row.lang != language:
                raise missing_reference(layout, found, language)
        except BadRow as bad:
            yield origin, bad
        else:
            account.unused_parallels += require_reference and unused_parallel(record, layout, row, language)
            yield origin, row


def _mix(table: pa.Table, source: Source, seed: list[int]) -> pa.Table:
    """`round(weight * rows)` rows: whole copies, then a sample without replacement in file order."""
    copies, rest = divmod(round(source.weight * table.num_rows), table.num_rows)
    if not copies and not rest:
        raise UserError(f"{source.path}: weight: {source.weight} of {table.num_rows} rows leaves none; raise it.")
    parts = [table] * copies
    if rest:
        mask = np.zeros(table.num_rows, dtype=bool)
        mask[np.random.default_rng(seed).choice(table.num_rows, rest, replace=False)] = True
        parts.append(table.filter(pa.array(mask)))
    return pa.concat_tables(parts)
