"""Rows as Arrow tables on disk, in the schema of `cctuning.data.schema`.

Optional columns, and optional keys of messages, exist only where some row has a value.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.schema import CHUNK, Row

TEXT = pa.string()
KEYS = {"role": TEXT, "content": TEXT, "thinking": TEXT, "tool_calls": TEXT, "name": TEXT, "tool_call_id": TEXT}
KEYS |= {"train": pa.bool_()}
MESSAGES = pa.list_(pa.struct([*KEYS.items()]))
CHECKED = "Checked by cc-tuning as it was read."
EXTRA = ("thinking", "calls", "tools", "arguments")
SIDES = ("prompt", "reference")
# While reading, plain text is one message without a role: whether any row has messages is known only at the end.
READ = pa.schema(
    [(name, TEXT) for name in ("response", "lang", "origin", *EXTRA)] + [(name, MESSAGES) for name in SIDES]
)


def in_batches(records: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Records as batches of a schema; at least one batch."""
    held = iter(records)
    batch = list(islice(held, CHUNK))
    yield pa.RecordBatch.from_pylist(batch, schema)
    while batch := list(islice(held, CHUNK)):
        yield pa.RecordBatch.from_pylist(batch, schema)


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of `READ`, mapped from disk."""
    return on_disk(in_batches(map(_record, rows), READ), READ).data.table


def _record(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {name: getattr(row, name) for name in ("response", "lang", "origin", "thinking")}
    for name in ("calls", "tools", "arguments"):
        out[name] = _json(getattr(row, name))
    for name in SIDES:
        text = getattr(row, name)
        if isinstance(text, list):
            text = [turn | {"tool_calls": _json(turn.get("tool_calls"))} for turn in text]
        out[name] = [{"role": None, "content": text}] if isinstance(text, str) else text
    return out


def _json(value: Any) -> str | None:
    if not value or isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False)


def dataset_of(table: pa.Table, numbers: Sequence[int] | None = None) -> datasets.Dataset:
    """The rows of a table of `READ`, with their `numbers`; all prompts are messages where any row has messages."""
    numbers = range(table.num_rows) if numbers is None else numbers
    keys = [key for key in KEYS if key == "content" or _has(table, key)]
    chat = "role" in keys
    kind = pa.list_(pa.struct([(key, KEYS[key]) for key in keys])) if chat else TEXT
    kinds = {"prompt": kind, "response": TEXT, "lang": TEXT, "reference": kind, "origin": TEXT}
    kinds |= {name: TEXT for name in EXTRA if table[name].null_count < table.num_rows}
    schema = pa.schema({**kinds, "row": pa.int64()})

    def side(turns: list[dict[str, Any]] | None) -> Any:
        if turns is None or not chat:
            return turns and turns[0]["content"]
        return [{key: turn[key] for key in keys} | {"role": turn["role"] or "user"} for turn in turns]

    def numbered() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in table.to_batches(CHUNK):
            arrays = [
                pa.array(map(side, batch[name].to_pylist()), kind) if name in SIDES else batch[name] for name in kinds
            ]
            rows = pa.array(numbers[start : start + batch.num_rows], pa.int64())
            yield pa.RecordBatch.from_arrays([*arrays, rows], schema=schema)
            start += batch.num_rows

    return on_disk(numbered(), schema)


def is_checked(dataset: datasets.Dataset) -> bool:
    """Whether a data set is one of `load_rows` or `load_parallel`, or made of such by `select`, `map` and the like."""
    return bool(dataset.info.description == CHECKED)


def _has(table: pa.Table, key: str) -> bool:
    """Whether any message has the key."""
    parts = (pc.list_flatten(table[name]) for name in SIDES)
    return any(pc.struct_field(part, key).null_count < len(part) for part in parts)


@cache
def _folder() -> str:
    """The directory of this process's Arrow files in `TMPDIR`, removed when it ends."""
    folder = tempfile.mkdtemp(prefix="cctuning-rows-")
    # Not atexit, which forked multiprocessing workers skip. In a child process this does nothing.
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    return folder


def on_disk(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> datasets.Dataset:
    """Write batches to a temporary Arrow file and map it into memory.

    `TMPDIR` says where. The file is removed if writing fails, and when the process ends.
    """
    handle, path = tempfile.mkstemp(".arrow", dir=_folder())
    os.close(handle)
    try:
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except BaseException:
        os.unlink(path)
        raise
    dataset = datasets.Dataset.from_file(path)
    dataset.info.description = CHECKED
    return dataset
