"""Open files, directories and hub data sets as streams of records, each with its place.

A *record* maps column names to values; `layouts.py` makes a row of it. JSON Lines and CSV are read
here and not by a library so that every error can name its line. One record is in memory at a time. Arrow and datasets
are imported only by the readers that need them, because they bring torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cctuning.data.schema import CHUNK, BadRow
from cctuning.data.text_files import Cells, numbered_lines, open_binary, read_table, uncompressed_name
from cctuning.errors import UserError, nearest, nearest_path
from cctuning.files import file_hash

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # all but Parquet also compressed
CARD, ROWS = "card.json", "rows.jsonl"  # in a directory that `cctuning pair` wrote
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
Found = Iterator[tuple[str, Mapping[str, Any] | BadRow]]  # the origin of each record, with it or what is wrong with it


@dataclass
class Records:
    """An opened file or data set.

    `columns` is None where records may differ in their columns (JSON Lines). `iterate(wanted)` yields the origin of
    each record with the record or a `BadRow`; only the columns `wanted` need be read.
    """

    columns: list[str] | None
    iterate: Callable[[Collection[str]], Found]
    fingerprints: dict[str, str]


def local_path(path: str) -> Path:
    """The path with environment variables and `~` expanded."""
    return Path(os.path.expandvars(path)).expanduser()


def open_records(path: str, name: str | None = None, split: str = "train") -> list[Records]:
    """Open a file, a directory or a data set on the hub (with its configuration `name`).

    In a directory of files, those whose names begin with `split` are read.
    """
    local = local_path(path)
    if local.is_file():
        return [_open_file(local)]
    if local.is_dir():
        if is_saved(local):
            return [_saved(local, split)]
        if name is None:
            files = [file for file in files_in(local) if data_format(file)]
            if not files:
                expected = ", ".join(SUFFIXES)
                raise UserError(f"{local}: no data file in this directory; expected files ending in {expected}.")
            return [_open_file(file) for file in of_split(files, split, local)]
    check_place(path)
    return [_hub(path, name, split)]


def files_in(folder: Path) -> list[Path]:
    """The files in a directory; of one that `cctuning pair` wrote, the rows without card and rejects."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
    return [folder / ROWS] if {folder / CARD, folder / ROWS} <= {*files} else files


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a data set, or one with splits, in this directory."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def check_place(path: str) -> None:
    """Raise `UserError` where `path` does not exist and cannot be the name of a data set on the hub."""
    local = local_path(path)
    if not local.exists() and (not re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", path) or data_format(local)):
        place = "Give a file, a directory saved by datasets, or the name of a data set on the hub."
        raise UserError(f"{path}: no such file or directory.{nearest_path(local)} {place}")


def data_format(path: Path) -> str | None:
    """The suffix of a data file without that of its compression; None for other files."""
    suffix = Path(uncompressed_name(path.name)).suffix.lower()
    return suffix if suffix in SUFFIXES and not (suffix == ".parquet" and path.suffix.lower() != suffix) else None


def of_split(files: list[Path], split: str, folder: Path) -> list[Path]:
    """The files whose names begin with the split's name; all of them where no name begins with one of `SPLITS`."""

    def is_part_of(file: Path, name: str) -> bool:
        return re.match(rf"{re.escape(name)}(?![a-z])", file.name.lower()) is not None

    chosen = [file for file in files if is_part_of(file, split.lower())]
    if not chosen and any(is_part_of(file, name) for file in files for name in SPLITS):
        names = ", ".join(file.name for file in files[:10]) + (", ..." if len(files) > 10 else "")
        # Reading all files could train on a test set.
        raise UserError(f"{folder}: no file of the split {split!r} among {names}. Name the split or the file.")
    return chosen or files


def _open_file(path: Path) -> Records:
    kind = data_format(path)
    if kind is None:
        raise UserError(
            f"{path}: unknown format; expected a name ending in {', '.join(SUFFIXES)} (text also .gz, .xz, .zst)."
        )
    fingerprints = {str(path): file_hash(path)}
    if kind == ".parquet":
        return _parquet(path, fingerprints)
    if kind in (".csv", ".tsv"):
        return _csv(path, "\t" if kind == ".tsv" else ",", fingerprints)
    return Records(None, lambda wanted: _json(path), fingerprints)


def _json(path: Path) -> Found:
    first = True
    for number, raw in numbered_lines(path):
        origin = f"{path}:{number}"
        if not raw.strip():
            continue
        if first and raw.lstrip().startswith(b"["):
            yield from _json_array(path)
            return
        first = False
        record: Any
        try:
            record = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line"
            yield origin, BadRow("line", f"{byte} is not UTF-8; re-encode it.", {"line": raw.decode(errors="replace")})
            continue
        except (ValueError, RecursionError) as error:
            reason = f"malformed JSON ({error}); expected one object a line."
            yield origin, BadRow("line", reason, {"line": raw.decode().strip()})
            continue
        yield origin, _as_object(record)


def _as_object(value: Any) -> Mapping[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow("line", f"expected a JSON object, found {type(value).__name__}.", {"line": value})


def _json_array(path: Path) -> Found:
    """One array of objects, as Alpaca and ShareGPT are published; it is read into memory."""
    try:
        records = json.loads(b"".join(raw for _, raw in numbered_lines(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON array ({error}); correct it, or use JSON Lines.") from None
    for number, record in enumerate(records):
        yield f"{path}[{number}]", _as_object(record)


def as_records(label: str, rows: Callable[[], Cells], header: list[str], skip: int) -> Found:
    """The rows of a table after the first `skip` as records with the columns `header`."""
    for number, cells in islice(rows(), skip, None):
        if isinstance(cells, str):
            yield f"{label}:{number}", BadRow("line", cells)
        elif len(cells) != len(header):
            reason = f"{len(cells)} cells, expected {len(header)} as in the first lines; quote cells with a separator."
            yield f"{label}:{number}", BadRow("line", reason, {"line": cells})
        else:
            yield f"{label}:{number}", dict(zip(header, cells, strict=True))


def _csv(path: Path, delimiter: str, fingerprints: dict[str, str]) -> Records:
    rows = read_table(str(path), lambda: open_binary(path), delimiter)
    first = next(rows(), (1, []))[1]
    header = first if isinstance(first, list) else []
    if not header or len(set(header)) < len(header):
        raise UserError(f"{path}:1: expected a header line of distinct column names, found {first}.")
    return Records(header, lambda wanted: as_records(str(path), rows, header, 1), fingerprints)


def _parquet(path: Path, fingerprints: dict[str, str]) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); download it again.") from None

    def iterate(wanted: Collection[str]) -> Found:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK, columns=[name for name in columns if name in wanted]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", record

    return Records(columns, iterate, fingerprints)


def _of_dataset(dataset: datasets.Dataset, label: str, fingerprints: dict[str, str]) -> Records:
    def iterate(wanted: Collection[str]) -> Found:
        number = 0
        # Other columns may be images, which are slow to decode.
        chosen = [name for name in dataset.column_names if name in wanted]
        for batch in dataset.select_columns(chosen).with_format(None).iter(CHUNK):
            for values in zip(*(batch[name] for name in chosen), strict=True):
                yield f"{label}:{number}", dict(zip(chosen, values, strict=True))
                number += 1

    return Records(dataset.column_names, iterate, fingerprints)


def _saved(path: Path, split: str) -> Records:
    import datasets
    import pyarrow as pa

    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be loaded as a saved data set ({error}); save it again.") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise UserError(f"{path}: no split {split!r}; it has {', '.join(dataset)}.{nearest(split, list(dataset))}")
        dataset = dataset[split]
    files = [Path(file["filename"]) for file in dataset.cache_files]
    return _of_dataset(dataset, f"{path}[{split}]", {str(file): file_hash(file) for file in files})


def _hub(path: str, name: str | None, split: str) -> Records:
    import datasets

    try:
        dataset = datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{path}: no such file, and no data set on the hub (name {name!r}, split {split!r}): {error} "
            "Check the path, the names and the network."
        ) from None
    label = f"{path}{f'/{name}' if name else ''}[{split}]"
    return _of_dataset(dataset, label, {label: f"datasets:{dataset._fingerprint}"})
