"""Rows as Arrow tables on disk, in the schema of `cctuning.data.schema`.

Optional columns, and optional keys of messages, exist only where some row has a value.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.schema import CHUNK, Row, as_messages

TEXT = pa.string()
KEYS = {"role": TEXT, "content": TEXT, "thinking": TEXT, "tool_calls": TEXT, "name": TEXT, "tool_call_id": TEXT}
KEYS |= {"train": pa.bool_()}
MESSAGES = pa.list_(pa.struct([*KEYS.items()]))
CHECKED = "Checked by cc-tuning as it was read."
PREFIX = "cctuning-rows-"  # of temporary directories
EXTRA = ("thinking", "calls", "tools", "arguments")
# While reading, text and messages have separate columns: whether any row has messages is known only at the end.
READ = pa.schema(
    [(name, TEXT) for name in ("prompt", "response", "lang", "reference", "origin", *EXTRA)]
    + [("prompt_messages", MESSAGES), ("reference_messages", MESSAGES)]
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
    for name, text in (("prompt", row.prompt), ("reference", row.reference)):
        if isinstance(text, list):
            out[f"{name}_messages"] = [turn | {"tool_calls": _json(turn.get("tool_calls"))} for turn in text]
        else:
            out[name] = text
    return out


def _json(value: Any) -> str | None:
    if not value or isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False)


def dataset_of(table: pa.Table, numbers: Sequence[int] | None = None) -> datasets.Dataset:
    """The rows of a table of `READ`, with their `numbers`; all prompts are messages where any row has messages."""
    numbers = range(table.num_rows) if numbers is None else numbers
    chat = table["prompt"].null_count > 0 or table["reference_messages"].null_count < table.num_rows
    kind = pa.list_(pa.struct([(key, KEYS[key]) for key in _keys(table)])) if chat else TEXT
    kinds = {"prompt": kind, "response": TEXT, "lang": TEXT, "reference": kind, "origin": TEXT}
    kinds |= {name: TEXT for name in EXTRA if table[name].null_count < table.num_rows}
    schema = pa.schema({**kinds, "row": pa.int64()})

    def joined(batch: pa.RecordBatch, name: str) -> pa.Array:
        if not chat:
            return batch[name]
        pairs = zip(batch[name].to_pylist(), batch[f"{name}_messages"].to_pylist(), strict=True)
        return pa.array([as_messages(text) if text is not None else turns for text, turns in pairs], kind)

    def numbered() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in table.to_batches(CHUNK):
            arrays = [joined(batch, n) if n in ("prompt", "reference") else batch[n] for n in kinds]
            rows = pa.array(numbers[start : start + batch.num_rows], pa.int64())
            yield pa.RecordBatch.from_arrays([*arrays, rows], schema=schema)
            start += batch.num_rows

    return on_disk(numbered(), schema)


def is_checked(dataset: datasets.Dataset) -> bool:
    """Whether a data set is one of `load_rows` or `load_parallel`, or made of such by `select`, `map` and the like."""
    return bool(dataset.info.description == CHECKED)


def _keys(table: pa.Table) -> list[str]:
    """The keys that any message has."""
    used = ["role", "content"]
    for key in KEYS:
        parts = (pc.list_flatten(table[name]) for name in ("prompt_messages", "reference_messages"))
        if key not in used and any(pc.struct_field(part, key).null_count < len(part) for part in parts):
            used.append(key)
    return used


@cache
def _folder() -> Path:
    """The directory of this process's Arrow files in `TMPDIR`, locked while the process lives."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{PREFIX}*"):  # by processes that were killed
        with suppress(OSError), (left / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    lock = (new / "lock").open("w")  # open as long as the process
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = new.rename(root / new.name.removeprefix("."))
    # Not atexit, which forked multiprocessing workers skip. In a child process this does nothing.
    Finalize(None, _remove, args=(folder, lock), exitpriority=0)
    return folder


def _remove(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


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
