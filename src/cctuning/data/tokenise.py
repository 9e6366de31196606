"""Tokenise a whole data set of rows, and list the rows that are left out."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, List, Value

from cctuning.data.encode import Encoder, origin_of
from cctuning.errors import UserError

IDS = List(Value("int32"))
FEATURES = {
    "input_ids": IDS,
    "labels": IDS,
    "reference_input_ids": IDS,
    "text": IDS,
    "reference_text": IDS,
    "row": Value("int64"),
    "lang": Value("string"),
}


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    *,
    bad_rows: str = "error",
    own_references: str | None = None,
    num_proc: int | None = None,
    desc: str = "Tokenising rows",
    notes: list[str] | None = None,
) -> tuple[Dataset, list[tuple[str, str]]]:
    """`Encoder.encode_row` over rows in the schema of `cctuning.data.schema`, with progress.

    Args:
        bad_rows: `error` stops at the first row that cannot be used; `skip` leaves such rows out.
        own_references: the reference language, if rows in it are their own reference.
        notes: warnings about rows are appended to it.

    Returns:
        The encoded rows, and (origin, reason) of those left out.
    """
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        fn_kwargs={"encoder": encoder, "skip": bad_rows == "skip", "home": own_references},
        remove_columns=dataset.column_names,
        features=Features({**FEATURES, **dict.fromkeys(("origin", "problem", "warning"), Value("string"))}),
        num_proc=num_proc if num_proc and 1 < num_proc <= len(dataset) else None,
        desc=desc,
        load_from_cache_file=False,  # a change in this module would not change the cache key
    )
    problems = encoded.data.column("problem").to_pylist()
    bad = [number for number, problem in enumerate(problems) if problem is not None]
    skipped = [(str(encoded[number]["origin"]), str(problems[number])) for number in bad]
    if len(bad) == len(problems):
        raise UserError(
            f"no usable row of {len(problems)}" + (f", the first: {': '.join(skipped[0])}" if bad else ".")
        )
    if bad:
        encoded = encoded.select([number for number, problem in enumerate(problems) if problem is None])
    if notes is not None:
        notes += _warnings(encoded)
    return encoded.remove_columns(["origin", "problem", "warning"]), skipped


def _warnings(encoded: Dataset) -> list[str]:
    """Each warning with the number of its rows and the first of them."""
    found: dict[str, list[str]] = {}
    for warning, origin in zip(encoded["warning"], encoded["origin"], strict=True):
        if warning is not None:
            found.setdefault(warning, []).append(origin)
    return [f"{len(rows)} of {len(encoded)} rows (the first: {rows[0]}): {warning}" for warning, rows in found.items()]


def _encode_batch(
    columns: dict[str, list[Any]], encoder: Encoder, skip: bool, home: str | None
) -> dict[str, list[Any]]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        if home is not None and row.get("reference") is None and row.get("lang") in ("", home):
            row["reference"] = row["prompt"]
    result: dict[str, list[Any]] = {name: [] for name in (*FEATURES, "origin", "problem", "warning")}
    for row, encoded in zip(rows, encoder.encode(rows), strict=True):
        origin, problem = origin_of(row), None
        if isinstance(encoded, UserError):
            if not skip:
                raise encoded
            problem = str(encoded).removeprefix(f"{origin}: ")
            encoded = {**{name: [] for name in FEATURES}, "row": -1, "lang": ""}
        more = {"origin": origin, "problem": problem, "warning": encoder.warning(row)}
        for name, value in {**encoded, **more}.items():
            result[name].append(value)
    return result
