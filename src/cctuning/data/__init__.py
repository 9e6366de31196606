"""Floor 2: rows in, batches out.

`load_rows` reads, checks and mixes the sources of a recipe; `encode_dataset` makes token ids of the rows;
`PairedCollator` makes batches of those. A name is imported when it is first used: `cctuning pair` works on rows alone
and need not hold torch in every process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cctuning.data.collate import PairedCollator
    from cctuning.data.encode import Encoder, encode_row
    from cctuning.data.encode_rows import encode_dataset
    from cctuning.data.handed import Reading
    from cctuning.data.parallel import ParallelReport, ParallelSourceReport, load_parallel
    from cctuning.data.parallel_source import ParallelSource
    from cctuning.data.rows import Skipped
    from cctuning.data.sources import LoadReport, Source, SourceReport, load_rows

__all__ = [
    "Encoder",
    "LoadReport",
    "PairedCollator",
    "ParallelReport",
    "ParallelSource",
    "ParallelSourceReport",
    "Reading",
    "Skipped",
    "Source",
    "SourceReport",
    "encode_dataset",
    "encode_row",
    "load_parallel",
    "load_rows",
]

_HOMES = {
    "collate": ("PairedCollator",),
    "encode": ("Encoder", "encode_row"),
    "encode_rows": ("encode_dataset",),
    "handed": ("Reading",),
    "parallel": ("ParallelReport", "ParallelSourceReport", "load_parallel"),
    "parallel_source": ("ParallelSource",),
    "rows": ("Skipped",),
    "sources": ("LoadReport", "Source", "SourceReport", "load_rows"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"cctuning.data.{home}"), name)
    raise AttributeError(f"module 'cctuning.data' has no attribute {name!r}")
