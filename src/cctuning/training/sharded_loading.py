"""The start of a sharded run in which no process ever holds the whole model.

from_pretrained reads all weights in every process, accelerate's `fsdp2_prepare_model` then empties the model (meta
device), shards it and deals the first process's weights out. Here from_pretrained is handed stand-ins in place of the
weights: tensors of the right shape and type whose elements all share one place in memory. All that looks at a model
before it is sharded (PEFT, the connection, the optimiser) sees a model on the CPU, made as ever: buffers computed,
embeddings tied, LoRA initialised. When it has been sharded, every process reads its own rows of each weight from the
safetensors files. What is not in the files (LoRA, connection) is dealt out by the first process, as accelerate does.

True meta tensors would not do: accelerate knows the optimiser's parameters again by their addresses, and those have
none; PEFT puts a LoRA where its base is, and its initial values would be lost.

What is not public and leaned on: accelerate calls `fsdp2_load_full_state_dict` once the model is sharded, and
`from_pretrained` takes a state dict's tensors as they are (tests/training/test_meta_start.py). If a stand-in were ever
left in place, its NaNs would stop the run at the first step.
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
    """Why a model has to be read whole."""


class Weight(NamedTuple):
    """What a stand-in stands for: a tensor in a file."""

    file: Path
    name: str


class ShardedLoader:
    """A model of stand-ins, and where its weights are.

    Attributes:
        model: as from_pretrained gives it, but that its weights (and saved buffers) are stand-ins.
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
            NotShardable: the model cannot be read so.
        """
        self._weights: dict[int, Weight] = {}  # by the stand-in's address
        self._stand_ins: list[Tensor] = []  # kept, lest another tensor comes to lie at such an address
        try:
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
            kind = torch_dtype(dtype) or config.dtype
            options = {"dtype": kind, "attn_implementation": attn_implementation}
            with torch.device("meta"):
                skeleton: Any = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=trust_remote_code, **options
                )
            _check(skeleton, kind)
            self._dtype: torch.dtype = kind  # that was asked for; accelerate may make fp32 of it
            self.model, info = type(skeleton).from_pretrained(
                None,
                config=skeleton.config,  # of a model with other parts than text, that of the text
                state_dict=self._open(_local(name, revision)),
                output_loading_info=True,
                **options,
            )
        except (*LOADING_ERRORS, UserError) as error:
            reason = str(error).partition("\n")[0].removesuffix(".")
            raise NotShardable(reason) from error  # loading it whole will say what is wrong with it, if anything is
        if info["missing_keys"]:
            raise NotShardable(f"{min(info['missing_keys'])} is not in its files")
        changed = [key for key, tensor in self.model.state_dict().items() if tensor.data_ptr() not in self._weights]
        if changed:
            raise NotShardable(f"{changed[0]} has another type in the model than was asked for")
        self.model.name_or_path = self.model.config.name_or_path = name
        with suppress(OSError):  # it has none, and from_pretrained has made one of the config
            self.model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")

    def _open(self, directory: Path) -> dict[str, Tensor]:
        """A stand-in for each floating-point weight in the files of `directory`."""
        files, state = ShardReader(directory), {}
        for name, file in files.file_of.items():
            dtype, shape = files.describe(name)
            if dtype is not None:  # others are masks of old checkpoints: where a model wants one it will be missed
                state[name] = self._stand_in(Weight(directory / file, name), shape, self._dtype)
        return state

    def _stand_in(self, weight: Weight, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.full((), math.nan, dtype=dtype).expand(shape)
        self._weights[made.data_ptr()] = weight
        self._stand_ins.append(made)
        return made

    @contextmanager
    def reading(self, model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
        """Within: where `accelerator` prepares `model`, every process reads its own shards of it.

        Args:
            model: `self.model`, or what it has become a part of.
        """
        if accelerator.mixed_precision != "no":  # accelerate turns what trains to fp32, and would make it whole for it
            for parameter in model.parameters():
                weight = self._weights.get(parameter.data_ptr())
                if weight is not None and parameter.requires_grad:
                    parameter.data = self._stand_in(weight, tuple(parameter.shape), torch.float32)
        before = fsdp_utils.fsdp2_load_full_state_dict
        fsdp_utils.fsdp2_load_full_state_dict = self._fill
        try:
            yield
        finally:
            fsdp_utils.fsdp2_load_full_state_dict = before

    def _fill(
        self, accelerator: Accelerator, model: nn.Module, full_sd: Mapping[str, Tensor], cpu_offload: bool = False
    ) -> nn.Module:
        """Give the sharded `model` its weights; in place of accelerate's function of this signature. A collective.

        Args:
            model: on the meta device.
            full_sd: what it held before, by name.
            cpu_offload: keep its shards on the CPU.
        """
        device, shards = accelerator.device, model.state_dict()
        filled: dict[str, Tensor] = {}
        wanted: dict[Weight, list[str]] = defaultdict(list)  # to names in the model: a tied weight has several
        for name, shard in shards.items():
            weight = self._weights.get(full_sd[name].data_ptr())
            if weight is not None:
                wanted[weight].append(name)
            else:
                filled[name] = _dealt_out(full_sd[name].to(device, shard.dtype), shard)
        quiet = None if accelerator.is_main_process else True
        with tqdm(total=len(wanted), desc="Reading weights", disable=quiet, leave=False) as bar:
            for file, weights in groupby(sorted(wanted), key=lambda weight: weight.file):
                with safe_open(file, framework="pt") as opened:  # closed after it, or all its pages would stay mapped
                    for weight in weights:
                        names = wanted[weight]
                        part = _own_part(opened, weight.name, shards[names[0]], self._dtype, device)
                        filled |= dict.fromkeys(names, part)
                        bar.update()
        if cpu_offload:
            filled = {name: t.to("cpu") if isinstance(t, DTensor) else t for name, t in filled.items()}
        model.load_state_dict(filled, assign=True)
        return model


def _dealt_out(value: Tensor, like: Tensor) -> Tensor:
    """The first process's `value`, sharded as `like` is. A collective."""
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def _own_part(opened: Any, name: str, like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What this process holds of a weight in an opened file: its share where `like` is sharded, or all of it.

    A copy, as the file is mapped and must not be written to, in the type of `like`, rounded to `dtype` before.
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
    """Raise `NotShardable` unless from_pretrained would put the tensors of the files into the model as they are."""
    if not isinstance(kind, torch.dtype):
        raise NotShardable("its config does not say which type its weights have")
    if getattr(skeleton.config, "quantization_config", None) is not None:
        raise NotShardable("its weights are quantised")
    if skeleton.is_remote_code():
        raise NotShardable("its family brings code of its own")
    if any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(skeleton)):
        raise NotShardable("its files have another layout than its modules")


def _local(name: str, revision: str | None) -> Path:
    """The directory of the weights, fetched from the hub where `name` is one there."""
    if Path(name).is_dir():
        return Path(name)
    patterns = ["model*.safetensors", "model.safetensors.index.json"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
