"""Read rows and parallel text, tokenise them and collate batches.

`load_rows` reads, checks and mixes sources of rows, `load_parallel` parallel text; `encode_dataset` tokenises rows;
`PairedCollator` makes batches. Names are imported on first use, because `cctuning pair` reads rows without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cctuning.data.collate import PairedCollator
    from cctuning.data.encode import Encoder
    from cctuning.data.loading import load_rows
    from cctuning.data.parallel.pairs import load_parallel
    from cctuning.data.reports import LoadReport
    from cctuning.data.sources import ParallelSource, Source
    from cctuning.data.tokenise import encode_dataset

__all__ = [
    "Encoder",
    "LoadReport",
    "PairedCollator",
    "ParallelSource",
    "Source",
    "encode_dataset",
    "load_parallel",
    "load_rows",
]

_HOMES = {
    "collate": ("PairedCollator",),
    "encode": ("Encoder",),
    "loading": ("load_rows",),
    "parallel.pairs": ("load_parallel",),
    "reports": ("LoadReport",),
    "sources": ("ParallelSource", "Source"),
    "tokenise": ("encode_dataset",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"cctuning.data.{home}"), name)
    raise AttributeError(f"module 'cctuning.data' has no attribute {name!r}")
