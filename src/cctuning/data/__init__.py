"""Floor 2: rows in, batches out.

`load_rows` reads, checks and mixes the sources of a recipe; `encode_dataset` makes token ids of the rows;
`PairedCollator` makes batches of those.
"""

from cctuning.data.collate import PairedCollator
from cctuning.data.encode import Encoder, encode_dataset, encode_row
from cctuning.data.rows import Skipped
from cctuning.data.sources import LoadReport, Source, SourceReport, load_rows

__all__ = [
    "Encoder",
    "LoadReport",
    "PairedCollator",
    "Skipped",
    "Source",
    "SourceReport",
    "encode_dataset",
    "encode_row",
    "load_rows",
]
