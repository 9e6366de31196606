"""Record what each layer is offered by every reference, once before training.

With `reference_weights: start` the references run through weights that never change, so what they offer a layer, one
vector each, is data. Recording it takes the reference pass out of every step. The vectors are a memory-mapped file in
a folder named after all that they depend on: weights, layers, pooling, tokens, precision. A second run on the same
rows reads it; an interrupted recording starts again. What rounding to bf16 changes: docs/results/performance.md,
"Recording".
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import torch
import xxhash
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from cctuning.connection.align import RecordedReferences
from cctuning.connection.parts import ALIGNMENTS
from cctuning.errors import UserError
from cctuning.model.forward import ATTRIBUTE
from cctuning.model.passes import Batch
from cctuning.model.runner import evaluating
from cctuning.model.sites import unwrap

if TYPE_CHECKING:
    from datasets import Dataset

    from cctuning.model.connected import ConnectedModel

FORMAT = 3
BATCH_TOKENS = 4096  # padded tokens a forward
VECTORS = (
    "vectors.bin"  # of a recording that is complete: the values alone, as shape and dtype are in its folder's name
)
INSTEAD = "Free disk space, set CC_TUNING_CACHE to another folder, or set record_references: false."
# Of a base's config: what changes no activation, or is changed by the trainer.
NO_MATTER = {"_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "output_router_logits"}
NO_MATTER |= {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "router_aux_loss_coef"}


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


def distinct(rows: Dataset) -> tuple[Prompts, list[int]]:
    """The distinct references of encoded rows, shortest first, and the number of each row's, -1 for none."""
    found: dict[bytes, tuple[list[int], list[int]]] = {}
    names = []
    columns = rows.select_columns(["reference_input_ids", "reference_text"]).with_format("numpy")
    for batch in columns.iter(1000):
        for ids, text in zip(batch["reference_input_ids"], batch["reference_text"], strict=True):
            name = np.asarray([*text, *ids]).tobytes() if len(ids) else b""
            names.append(name)
            if name and name not in found:
                found[name] = ids.tolist(), text.tolist()
    order = sorted(found, key=lambda name: (len(found[name][0]), found[name]))
    numbers = {name: number for number, name in enumerate(order)}
    text = torch.tensor([found[name][1] for name in order], dtype=torch.long).reshape(-1, 2)
    return Prompts([found[name][0] for name in order], text), [numbers.get(name, -1) for name in names]


def cache_folder() -> Path:
    """Folder of the recordings: in `CC_TUNING_CACHE`, else in `cctuning` in the user's cache directory."""
    home = os.environ.get("CC_TUNING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cctuning"
    return Path(home).expanduser() / "references"


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Size of a recording of this shape."""
    return dtype.itemsize * math.prod(shape)


def fits(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Why a recording cannot be kept in `file` (whose folder need not exist yet); None if it can, or is there."""
    if any(_is_whole(path, shape, dtype) for path in (file, _partial(file))):
        return None
    needed, folder = bytes_of(shape, dtype), file.parent
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there}: not a directory that can be written to"
    free = shutil.disk_usage(there).free
    if needed * 1.05 > free:
        return f"{shape[0]:,} references need {needed / 1e6:,.1f} MB in {folder}, which has {free / 1e6:,.1f} MB free"
    return None


def key(connected: ConnectedModel, prompts: Prompts, precision: str, weights: bool) -> str:
    """Name of a recording: a hash over all that it depends on, with every value of the weights.

    Args:
        precision: of the arithmetic (`bf16` under autocast).
        weights: False where they are sharded; the recording is then kept for one run.
    """
    mark = xxhash.xxh3_128()  # not SHA-256, which would take long for the weights of large models
    config = connected.config
    about = (config.connection, config.align_at, config.align_pool, config.alignment, connected.layers, precision)
    kind = ALIGNMENTS[config.alignment]
    if not kind.__module__.startswith("cctuning."):  # a class of the user's own, which may change
        try:
            source = inspect.getsource(sys.modules[kind.__module__])
        except (OSError, TypeError):  # typed at a prompt
            source = uuid4().hex
        mark.update(source.encode())
    base = unwrap(connected.model).config.get_text_config().to_dict()
    base = {name: value for name, value in base.items() if name not in NO_MATTER}
    scales = [module.scaling for module in connected.model.modules() if isinstance(module, LoraLayer)]
    mark.update(json.dumps([FORMAT, *about, base, scales], sort_keys=True, default=str).encode())
    # Not named_parameters: of some quantised models the weights or their scales are buffers.
    for name, weight in connected.model.state_dict().items() if weights else ():
        if ATTRIBUTE not in name and isinstance(weight, Tensor):
            mark.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            mark.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for ids in prompts.ids:
        mark.update(np.asarray([len(ids), *ids], dtype=np.int32).tobytes())
    mark.update(prompts.text.numpy().tobytes())
    return mark.hexdigest()


def record(
    connected: ConnectedModel,
    prompts: Prompts,
    *,
    file: Path | None = None,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world: int = 1,
    collective: bool = False,
    quiet: bool | None = None,
) -> RecordedReferences:
    """Run the references through the model as it is, and keep what its layers are offered.

    Args:
        connected: in any mode, which is restored.
        prompts: distinct.
        file: what the recording is kept in; None: in memory only. dtype: of the vectors.
        rank, world: of several processes; each records its share, and all read the file after a barrier.
        collective: the weights are sharded, so all processes run every forward together.
        quiet: show no progress bar (None: where the output is not a terminal).
    """
    device = next(connected.model.parameters()).device
    share, shape = batches(prompts)[rank::world], (len(prompts), len(connected.layers), connected.width)

    def fill(vectors: Tensor) -> Tensor:
        with tqdm(total=sum(map(len, share)), desc="Recording references", leave=False, disable=quiet) as bar:
            for places in share:
                vectors[places] = _run(connected, prompts, places).to(dtype)
                bar.update(len(places))
        return vectors

    if file is None:
        return RecordedReferences(fill(torch.empty(shape, dtype=dtype)), connected.layers, device)
    there = [_is_whole(file, shape, dtype)]
    if world > 1:  # all processes record, or none does
        torch.distributed.broadcast_object_list(there)
    if not there[0]:
        partial = _partial(file)
        if rank == 0:
            _create(partial, shape, dtype)
        _wait(world)
        fill(_map(partial, shape, dtype, shared=True))
        if collective:  # run along where others have more to record
            for _ in range(len(batches(prompts)[::world]) - len(share)):
                _run(connected, prompts, [0])
        _wait(world)
        if rank == 0:
            with suppress(FileNotFoundError):  # another run has recorded the same
                os.replace(partial, file)
        _wait(world)
    return RecordedReferences(_map(file, shape, dtype, shared=False), connected.layers, device)


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")


def _wait(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


def _is_whole(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether `path` can be read and has its full size."""
    return os.access(path, os.R_OK) and path.stat().st_size == bytes_of(shape, dtype)


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype, shared: bool) -> Tensor:
    """The vectors in `path`, memory-mapped; what is written to them goes into the file if `shared`."""
    if not _is_whole(path, shape, dtype):
        raise UserError(f"{path}: cannot be read back; all processes must share one file system. {INSTEAD}")
    return torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=dtype).view(shape)


def _create(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Make the file of a recording, in its full size, so that the disk cannot fill up on the way."""
    if _is_whole(path, shape, dtype):  # of an interrupted run, or of one that records the same now
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            allocate = getattr(os, "posix_fallocate", lambda number, _, length: os.truncate(number, length))
            allocate(file.fileno(), 0, bytes_of(shape, dtype))
    except OSError as error:
        with suppress(OSError):  # missing, or no directory on the way to it
            path.unlink()
        raise UserError(f"{path}: the recording of the references cannot be written ({error}). {INSTEAD}") from None


def batches(prompts: Prompts) -> list[list[int]]:
    """Places of the prompts of each forward: similar lengths together, up to BATCH_TOKENS padded tokens."""
    found: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda place: len(prompts.ids[place])):
        if not found or (len(found[-1]) + 1) * len(prompts.ids[place]) > BATCH_TOKENS:
            found.append([])
        found[-1].append(place)
    return found


def _run(connected: ConnectedModel, prompts: Prompts, places: list[int]) -> Tensor:
    """(N, L, d) fp32 of the prompts at `places`, in one forward."""
    device = next(connected.model.parameters()).device
    rows = [torch.as_tensor(prompts.ids[place], dtype=torch.long) for place in places]
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids, mask, text = ids.to(device), mask.to(device), prompts.text[places].to(device)
    batch = Batch(ids, mask, reference_input_ids=ids, reference_attention_mask=mask, reference_text=text)
    with evaluating(connected.model):
        memory = connected.reference_pass(batch).memory
    return torch.stack([memory[layer][0] for layer in connected.layers], dim=1).float().cpu()
