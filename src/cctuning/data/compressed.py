"""Files as they are published: plain, gzip, bzip2, xz or Zstandard, by the end of the name; read as they stream."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What reading a damaged file raises beside OSError; Arrow's Zstandard raises OSError.
DAMAGED = (EOFError, lzma.LZMAError, OSError)


def bare(name: str) -> str:
    """The name without the ending that says how the file is compressed."""
    for ending in COMPRESSED:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if ending == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if ending == ".zst":
        import pyarrow as pa  # the standard library has Zstandard from Python 3.14 on

        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 18))
    return path.open("rb")
