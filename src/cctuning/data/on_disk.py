"""Data sets that lie in an Arrow file in a temporary directory of this process, mapped into memory and not held there.

`TMPDIR` says where. The directory is removed when the process ends, and nothing is cached between runs: what is loaded
is always what the files hold.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from multiprocessing.util import Finalize
from pathlib import Path

import datasets
import pyarrow as pa


def on_disk(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> datasets.Dataset:
    """Write the batches as they come and map the file."""
    folder = Path(tempfile.mkdtemp(prefix="cctuning-rows-"))
    # Not atexit: a forked worker of multiprocessing ends without it. In a child of this process it does nothing.
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=0)
    path = folder / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return datasets.Dataset.from_file(str(path))
