"""Read weights from safetensors files, one tensor at a time.

The files are those of `save_pretrained`: `STEM.safetensors`, or `STEM-0000i-of-0000n.safetensors` with
`STEM.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from cctuning.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
