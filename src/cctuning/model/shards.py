"""Read and write weights in safetensors files, one tensor at a time.

The files are those of `save_pretrained`: `STEM.safetensors`, or `STEM-0000i-of-0000n.safetensors` with
`STEM.safetensors.index.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from cctuning.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHARD_BYTES = 4 * 1024**3  # of one file, which the writing process holds


class ShardWriter:
    """Writes tensors to files of at most `limit` bytes, or of one `add`, if that is larger."""

    def __init__(self, directory: Path, stem: str = "model", limit: int = SHARD_BYTES) -> None:
        self.directory, self.stem, self.limit = directory, stem, limit
        self.held: dict[str, Tensor] = {}
        self.held_bytes = self.total = 0
        self.files: list[Path] = []
        self.names: list[list[str]] = []

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add CPU tensors by name; they go into one file together."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.held and self.held_bytes + size > self.limit:
            self._flush()
        self.held |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.held_bytes += size
        self.total += size

    def close(self) -> None:
        """Write the rest, name the files, and write the index if there are several."""
        self._flush()
        count = len(self.files)
        weight_map: dict[str, str] = {}
        for number, (partial, names) in enumerate(zip(self.files, self.names, strict=True), start=1):
            final = f"{self.stem}-{number:05d}-of-{count:05d}.safetensors" if count > 1 else f"{self.stem}.safetensors"
            os.replace(partial, self.directory / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            path = self.directory / f"{self.stem}.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if not self.held:
            return
        path = self.directory / f".{self.stem}-{len(self.files) + 1:05d}.partial"
        save_file(self.held, path, metadata={"format": "pt"})
        self.files.append(path)
        self.names.append(list(self.held))
        self.held, self.held_bytes = {}, 0


class ShardReader(Mapping[str, Tensor]):
    """The tensors of such files by name, each read to the CPU when it is looked up."""

    def __init__(self, directory: Path, stem: str = "model") -> None:
        single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
        path, self.directory, self.files = single, directory, [single.name]
        if not index.is_file() and not single.is_file():
            raise UserError(
                f"{directory}: {single.name} is missing, so the directory is incomplete; train or copy it again."
            )
        try:
            if index.is_file():
                path = index
                self.file_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                self.files = sorted(set(self.file_of.values()))
            self._open: dict[str, Any] = {}
            for name in self.files:
                path = directory / name
                self._open[name] = safe_open(path, framework="pt")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            kind = "index" if path == index else "safetensors file"
            raise UserError(f"{path}: not a complete {kind} ({error!r}); train or copy it again.") from error
        if not index.is_file():
            self.file_of = dict.fromkeys(self._open[single.name].keys(), single.name)

    def __getitem__(self, name: str) -> Tensor:
        return self._open[self.file_of[name]].get_tensor(name)

    def describe(self, name: str) -> tuple[torch.dtype | None, tuple[int, ...]]:
        """Dtype (None if it is not floating-point) and shape, without reading the tensor."""
        part = self._open[self.file_of[name]].get_slice(name)
        return FLOATS.get(part.get_dtype()), tuple(part.get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)


def read_into(parameter: Tensor, value: Tensor, where: str) -> None:
    """Copy the whole `value` into `parameter`, of which this process may hold a shard."""
    if parameter.shape != value.shape:
        raise UserError(f"{where}: has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}.")
    with torch.no_grad():
        parameter.copy_(shard_like(parameter, value))


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value` (the same in every process), on the device of `parameter` and sharded like it."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        local = value.to(parameter.to_local().device)
        return distribute_tensor(local, mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)
