"""Record what each layer is offered by every reference, once before training.

With `reference_weights: start` the references run through weights that never change, so what they offer a layer, one
vector each, is data. Recording it takes the reference pass, and a copy of the weights, out of every step. The vectors
are memory-mapped safetensors files in a folder named after all that they depend on: weights, layers, pooling, tokens,
precision. A second run on the same rows reads them, and an interrupted recording is completed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from cctuning.connection.align import Statistics
from cctuning.errors import UserError
from cctuning.files import write_atomically

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel

FORMAT = 1
CHUNK = 2048  # references a file
BATCH_TOKENS = 4096  # padded tokens a forward
RESIDENT = 1 << 30  # bytes up to which all vectors are kept on the model's device
SAMPLE = 1024  # references that statistics are taken from where nothing is recorded
INDEX = "index.json"


@dataclass(frozen=True)
class Prompts:
    """Distinct references: token ids of each, and the span of its own text among them, (R, 2) int64."""

    ids: Sequence[Sequence[int]]
    text: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, places: Sequence[int]) -> Prompts:
        """The prompts at `places`."""
        return Prompts([self.ids[place] for place in places], self.text[list(places)])


class RecordedReferences:
    """Vectors (R, L, d) fp32 of R references at L layers, with their statistics."""

    def __init__(self, files: Sequence[Tensor], layers: Sequence[int], device: torch.device) -> None:
        """
        Args:
            files: (n, L, d) each, consecutive references. layers: numbers of the layers. device: of the model.
        """
        self.layers, self.device = list(layers), device
        self.statistics = {
            layer: Statistics.of(*(file[:, n] for file in files)).to(device) for n, layer in enumerate(layers)
        }
        self.resident = sum(file.nbytes for file in files) <= RESIDENT
        self._files = [torch.cat(list(files)).to(device)] if self.resident else list(files)
        self._starts = torch.tensor([0, *(len(file) for file in self._files)], device=self._files[0].device).cumsum(0)
        self.size = int(self._starts[-1])

    def take(self, places: Tensor) -> dict[int, Tensor]:
        """Layer -> (N, d) vectors of the references `places` (N,), on the model's device."""
        places = places.to(self._starts.device)
        file_of = torch.searchsorted(self._starts, places, right=True) - 1
        found = self._files[0].new_empty(len(places), *self._files[0].shape[1:])
        for number in file_of.unique().tolist():
            rows = file_of == number
            found[rows] = self._files[number][places[rows] - self._starts[number]]
        found = found.to(self.device)
        return {layer: found[:, n] for n, layer in enumerate(self.layers)}

    def offer(self, rows: Tensor, others: int, seed: int) -> tuple[dict[int, Tensor], Tensor, Tensor | None]:
        """The references of a batch, and others to tell them from.

        Args:
            rows: (B,) reference of each row, -1 for none.
            others: at most this many, drawn from all. seed: of the draw, the same in all processes of a step.

        Returns:
            Layer -> (R', d); (B,) place of each row's reference among them, -1 for none; (K,) places of the others,
            None for all R'.
        """
        if self.size <= others and self.resident:
            return {layer: self._files[0][:, n] for n, layer in enumerate(self.layers)}, rows, None
        drawn = torch.randint(self.size, (others,), generator=torch.Generator().manual_seed(seed))
        own = rows[rows >= 0].cpu()
        places, inverse = torch.unique(torch.cat([own, drawn]), return_inverse=True)
        which = torch.full_like(rows, -1)
        which[rows >= 0] = inverse[: len(own)].to(rows.device)
        return self.take(places), which, inverse[len(own) :].unique().to(self.device)


def cache_folder() -> Path:
    """Folder of the recordings: in `CC_TUNING_CACHE`, else in `cctuning` in the user's cache directory."""
    home = os.environ.get("CC_TUNING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cctuning"
    return Path(home).expanduser() / "references"


def bytes_needed(connected: ConnectedModel, references: int) -> int:
    """Size of a recording of so many references."""
    return references * len(connected.layers) * connected.width * 4


def fits(connected: ConnectedModel, references: int, folder: Path) -> str | None:
    """Why a recording cannot be kept in `folder` (which need not exist yet); None if it can."""
    needed = bytes_needed(connected, references)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there}: not a directory that can be written to"
    free = shutil.disk_usage(there).free
    if needed * 1.05 > free:
        return (
            f"{references:,} references need {needed / 1e6:,.1f} MB in {folder}, which has {free / 1e6:,.1f} MB free"
        )
    return None


def key(connected: ConnectedModel, prompts: Prompts, precision: str) -> str:
    """Name of a recording: a hash over all that it depends on, with 256 values of each weight."""
    mark = hashlib.sha256()
    config = connected.config
    about = (config.connection, config.align_at, config.align_pool, config.alignment, connected.layers, precision)
    mark.update(json.dumps([FORMAT, *about]).encode())
    for name, parameter in connected.model.named_parameters():
        if "cross_lingual_connection" not in name:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu().numpy()
            mark.update(f"{name}{tuple(parameter.shape)}".encode() + sample.tobytes())
    for ids in prompts.ids:
        mark.update(np.asarray([len(ids), *ids], dtype=np.int32).tobytes())
    mark.update(prompts.text.numpy().tobytes())
    return mark.hexdigest()[:32]


def record(
    connected: ConnectedModel,
    prompts: Prompts,
    *,
    pad: int,
    folder: Path | None,
    precision: str = "",
    rank: int = 0,
    world: int = 1,
    collective: bool = False,
    quiet: bool | None = None,
) -> RecordedReferences:
    """Run the references through the model as it is, and keep what its layers are offered.

    Args:
        connected: in any mode, which is restored.
        prompts: distinct, best sorted by length. pad: token id for padding.
        folder: where recordings are kept; None: in memory only.
        precision: of the arithmetic (`bf16` under autocast); part of the recording's name.
        rank, world: of several processes; each records its share, and all read the files after a barrier.
        collective: the weights are sharded, so all processes run every forward together; `folder` is then this
            recording's own, for its name cannot be computed from the weights.
        quiet: show no progress bar (None: where the output is not a terminal).
    """
    device = next(connected.model.parameters()).device
    chunks = [prompts.of(range(start, min(start + CHUNK, len(prompts)))) for start in range(0, len(prompts), CHUNK)]
    if folder is None:
        files = [_vectors(connected, chunk, pad, quiet) for chunk in chunks]
        return RecordedReferences(files, connected.layers, device)
    if not collective:
        folder = folder / key(connected, prompts, precision)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(connected.layers), connected.width)
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(chunks))]

    def read(number: int) -> Tensor | None:
        return _read(paths[number], (len(chunks[number]), *shape))

    there = [read(number) is not None for number in range(len(chunks))]
    if collective:  # all processes record, or none does
        told: list[Any] = [all(there)]
        torch.distributed.broadcast_object_list(told)
        there = [told[0]] * len(chunks)
    for number in range(rank, len(chunks), world):
        if not there[number]:
            _write(paths[number], _vectors(connected, chunks[number], pad, quiet))
    if collective and not all(there):  # run along where others have more to record
        forwards = [len(batches(chunk)) for chunk in chunks]
        most = max(sum(forwards[one::world]) for one in range(world))
        for _ in range(most - sum(forwards[rank::world])):
            _run(connected, prompts, [0], pad)
    if world > 1:
        torch.distributed.barrier()
    files = []
    for number, path in enumerate(paths):
        found = read(number)
        if found is None and not collective:  # another process's share, on another machine's disk
            _write(path, _vectors(connected, chunks[number], pad, quiet))
            found = read(number)
        if found is None:
            raise UserError(
                f"{path}: cannot be read back; all processes must share one file system. Check it, or set "
                "record_references: false."
            )
        files.append(found)
    if rank == 0:
        about = {"format": FORMAT, "references": len(prompts), "layers": connected.layers, "width": connected.width}
        write_atomically(folder / INDEX, json.dumps(about) + "\n")
    return RecordedReferences(files, connected.layers, device)


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The vectors in `path`, memory-mapped; None where the file is missing or incomplete."""
    try:
        vectors = load_file(path)["vectors"]
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == torch.float32 else None


def _write(path: Path, vectors: Tensor) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({"vectors": vectors.contiguous()}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the recording of the references cannot be written ({error}); free disk space, set "
            "CC_TUNING_CACHE to another folder, or set record_references: false."
        ) from None


def batches(prompts: Prompts) -> list[list[int]]:
    """Places of the prompts of each forward: similar lengths together, up to BATCH_TOKENS padded tokens."""
    found: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda place: len(prompts.ids[place])):
        if not found or (len(found[-1]) + 1) * len(prompts.ids[place]) > BATCH_TOKENS:
            found.append([])
        found[-1].append(place)
    return found


def _vectors(connected: ConnectedModel, prompts: Prompts, pad: int, quiet: bool | None) -> Tensor:
    """(n, L, d) fp32 on the CPU."""
    found = torch.empty(len(prompts), len(connected.layers), connected.width)
    with tqdm(total=len(prompts), desc="Recording references", leave=False, disable=quiet) as bar:
        for places in batches(prompts):
            found[places] = _run(connected, prompts, places, pad)
            bar.update(len(places))
    return found


def _run(connected: ConnectedModel, prompts: Prompts, places: list[int], pad: int) -> Tensor:
    """(N, L, d) of the prompts at `places`, in one forward."""
    device = next(connected.model.parameters()).device
    rows = [torch.as_tensor(prompts.ids[place], dtype=torch.long) for place in places]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    vectors = connected.reference_vectors(ids.to(device), mask.to(device), prompts.text[places].to(device))
    return vectors.float().cpu()
