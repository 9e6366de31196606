"""Read rows and parallel text, tokenise them and collate batches.

`load_rows` reads, checks and mixes sources of rows, `load_parallel` parallel text; `encode_dataset` tokenises rows;
`PairedCollator` makes batches. Names are imported on first use, because `cctuning pair` reads rows without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cctuning.data.collate import PairedCollator as PairedCollator
    from cctuning.data.encode import Encoder as Encoder
    from cctuning.data.encode import encode_dataset as encode_dataset
    from cctuning.data.loading import load_rows as load_rows
    from cctuning.data.parallel.pairs import load_parallel as load_parallel
    from cctuning.data.sources import LoadReport as LoadReport
    from cctuning.data.sources import ParallelSource as ParallelSource
    from cctuning.data.sources import Source as Source

_MODULES = {
    "Encoder": "encode",
    "LoadReport": "sources",
    "PairedCollator": "collate",
    "ParallelSource": "sources",
    "Source": "sources",
    "encode_dataset": "encode",
    "load_parallel": "parallel.pairs",
    "load_rows": "loading",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"cctuning.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'cctuning.data' has no attribute {name!r}")
