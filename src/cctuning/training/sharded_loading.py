"""Load a model for FSDP2 without holding all of it in any process.

from_pretrained reads all weights in every process; accelerate's `fsdp2_prepare_model` then empties the model (meta
device), shards it and distributes the first process's weights (`fsdp_cpu_ram_efficient_loading`). Here from_pretrained
gets placeholders for the weights: tensors of the right shape and dtype whose elements share one place in memory. What
looks at the model before it is sharded (PEFT, the connection, the optimizer) sees a model on the CPU, made as usual:
buffers computed, embeddings tied, LoRA initialised. After sharding, every process reads its own rows of each weight
from the safetensors files. What is not in the files (LoRA, connection) is distributed by the first process, as
accelerate does it.

Alternatives that do not work: with meta tensors accelerate cannot map the optimizer to the sharded parameters (it goes
by their addresses), and PEFT creates a LoRA on the device of its base, so its initial values would be lost.
transformers can shard as it loads (`DistributedConfig`), but a LoRA and a connection that are attached afterwards are
not part of its FSDP units.

Private functions this depends on: accelerate calls `fsdp2_load_full_state_dict` once the model is sharded, and
`from_pretrained` uses a state dict's tensors as they are (tests/training/test_sharded_loading.py). A placeholder that
was left in place would stop the run at the first step, as it is NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp_utils
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from cctuning.errors import UserError
from cctuning.model.loading import LOADING_ERRORS, torch_dtype
from cctuning.model.shards import ShardReader


class NotShardable(Exception):
    """Why every process has to load the whole model."""


class Weight(NamedTuple):
    """A tensor in a file."""

    file: Path
    name: str


class ShardedLoader:
    """A model of placeholders, and the files of its weights.

    Attributes:
        model: as from_pretrained returns it, with placeholders for its weights (and saved buffers).
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        """Arguments as of `load_base`.

        Raises:
            NotShardable: the model has to be loaded whole.
        """
        self._weights: dict[int, Weight] = {}  # by the placeholder's address
        self._placeholders: list[Tensor] = []  # kept, so that no other tensor gets such an address
        try:
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
            kind = torch_dtype(dtype) or config.dtype
            options = {"dtype": kind, "attn_implementation": attn_implementation}
            with torch.device("meta"):
                skeleton: Any = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=trust_remote_code, **options
                )
            _check(skeleton, kind)
            self._dtype: torch.dtype = kind  # as requested; accelerate may convert it to fp32
            self.model, info = type(skeleton).from_pretrained(
                None,
                config=skeleton.config,  # of a multimodal model, that of the text
                state_dict=self._open(_local(name, revision)),
                output_loading_info=True,
                **options,
            )
        except (*LOADING_ERRORS, UserError) as error:
            reason = str(error).partition("\n")[0].removesuffix(".")
            raise NotShardable(reason) from error  # if something is wrong, loading it whole raises the error
        if info["missing_keys"]:
            raise NotShardable(f"{min(info['missing_keys'])} is not in its files")
        changed = [key for key, tensor in self.model.state_dict().items() if tensor.data_ptr() not in self._weights]
        if changed:
            raise NotShardable(f"{changed[0]} has another dtype in the model than requested")
        self.model.name_or_path = self.model.config.name_or_path = name
        with suppress(OSError):  # it has none: from_pretrained made one from the config
            self.model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")

    def _open(self, directory: Path) -> dict[str, Tensor]:
        """A placeholder for each floating-point weight in the files of `directory`."""
        files, state = ShardReader(directory), {}
        for name, file in files.file_of.items():
            dtype, shape = files.describe(name)
            if dtype is not None:  # others are masks of old checkpoints; if a model needs one, it is a missing key
                state[name] = self._placeholder(Weight(directory / file, name), shape, self._dtype)
        return state

    def _placeholder(self, weight: Weight, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.full((), math.nan, dtype=dtype).expand(shape)
        self._weights[made.data_ptr()] = weight
        self._placeholders.append(made)
        return made

    @contextmanager
    def reading(self, model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
        """While `accelerator` prepares `model` (or a model that contains it) within, each process reads its shards."""
        if accelerator.mixed_precision != "no":  # accelerate converts trained weights to fp32, whole
            for parameter in model.parameters():
                weight = self._weights.get(parameter.data_ptr())
                if weight is not None and parameter.requires_grad:
                    parameter.data = self._placeholder(weight, tuple(parameter.shape), torch.float32)
        before = fsdp_utils.fsdp2_load_full_state_dict
        fsdp_utils.fsdp2_load_full_state_dict = self._fill
        try:
            yield
        finally:
            fsdp_utils.fsdp2_load_full_state_dict = before

    def _fill(
        self, accelerator: Accelerator, model: nn.Module, full_sd: Mapping[str, Tensor], cpu_offload: bool = False
    ) -> nn.Module:
        """Load the sharded `model`, which held `full_sd` before; replaces accelerate's function. A collective."""
        device, shards = accelerator.device, model.state_dict()
        filled: dict[str, Tensor] = {}
        wanted: dict[Weight, list[str]] = defaultdict(list)  # -> names in the model: a tied weight has several
        for name, shard in shards.items():
            weight = self._weights.get(full_sd[name].data_ptr())
            if weight is not None:
                wanted[weight].append(name)
            else:
                filled[name] = _distributed(full_sd[name].to(device, shard.dtype), shard)
        quiet = None if accelerator.is_main_process else True
        with tqdm(total=len(wanted), desc="Reading weights", disable=quiet, leave=False) as bar:
            for file, weights in groupby(sorted(wanted), key=lambda weight: weight.file):
                with safe_open(file, framework="pt") as opened:  # closed afterwards, so that its pages are unmapped
                    for weight in weights:
                        names = wanted[weight]
                        part = _own_part(opened, weight.name, shards[names[0]], self._dtype, device)
                        filled |= dict.fromkeys(names, part)
                        bar.update()
        if cpu_offload:
            filled = {name: t.to("cpu") if isinstance(t, DTensor) else t for name, t in filled.items()}
        model.load_state_dict(filled, assign=True)
        return model


def _distributed(value: Tensor, like: Tensor) -> Tensor:
    """The first process's `value`, sharded as `like` is. A collective."""
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def _own_part(opened: Any, name: str, like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """This process's share of a weight in an opened file; all of it if `like` is not sharded.

    A copy (the file is memory-mapped), rounded to `dtype` and then in the dtype of `like`.
    """
    if not isinstance(like, DTensor):
        return opened.get_tensor(name).to(dtype).to(device, like.dtype, copy=True)
    shape, start = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    local = torch.empty(shape, dtype=like.dtype, device=device)
    if local.numel():
        own = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        local.copy_(opened.get_slice(name)[own].to(dtype))
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _check(skeleton: Any, kind: Any) -> None:
    """Raise `NotShardable` unless from_pretrained uses the tensors of the files as they are."""
    if not isinstance(kind, torch.dtype):
        raise NotShardable("its config does not name the dtype of its weights")
    if getattr(skeleton.config, "quantization_config", None) is not None:
        raise NotShardable("its weights are quantised")
    if skeleton.is_remote_code():
        raise NotShardable("it needs code from its repository")
    if any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(skeleton)):
        raise NotShardable("its files have another layout than its modules")


def _local(name: str, revision: str | None) -> Path:
    """The directory of the weights, downloaded from the hub if `name` is one there."""
    if Path(name).is_dir():
        return Path(name)
    patterns = ["model*.safetensors", "model.safetensors.index.json"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
