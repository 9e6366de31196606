"""Save and load sharded weights (FSDP2) in the files of an unsharded run, which any run can read.

Weights are gathered one layer at a time, written by the first process and dropped; every process reads back its own
share, one tensor at a time. Optimizer states are stored the same way, by parameter name.

accelerate's sharded format contains pickles, can only be read under FSDP, and leaves out the connection of a base with
a LoRA; its full format gathers all weights in one process. torch.distributed.checkpoint's `HuggingFaceStorageWriter`
writes all shards into a folder of their own and then merges them into the final files, so a checkpoint is written
twice, by the names and layout of the modules (some families have another on disk); it stores tensors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME

from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model import serialization
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.shards import ShardReader, ShardWriter, read_into, shard_like
from cctuning.model.sites import unwrap

OPTIMIZER_STEM = "optimizer"  # optimizer.safetensors (or its shards)
OPTIMIZER_RECORD = "optimizer.json"
LAYER = re.compile(r".*?\.\d+\.")


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight of `model` is a shard."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole `tensor`, detached. A collective if it is sharded."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by name, tied ones once."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def write(
    tensors: Iterable[tuple[str, Tensor]],
    directory: Path,
    stem: str,
    *,
    writer: bool,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict,
    desc: str,
) -> None:
    """Write `tensors`, gathered one layer at a time, to files named `stem`. A collective.

    Args:
        tensors: by name, in the same order in every process.
        writer: whether this process writes.
        convert: from a layer's names and layout in the model to those on disk.
    """
    files = ShardWriter(directory, stem)
    every = list(tensors)
    with tqdm(total=len(every), desc=desc, disable=None if writer else True, leave=False) as bar:
        for _, layer in groupby(every, key=lambda item: (m := LAYER.match(item[0])) and m.group()):
            gathered = {}
            for name, tensor in layer:
                full = whole(tensor)
                if writer:
                    gathered[name] = full.cpu()
                del full
                bar.update()
            if writer:
                files.add(convert(gathered))
    if writer:
        files.close()


def save_base(model: PreTrainedModel, directory: Path, *, skip: str, plain: bool, writer: bool) -> None:
    """Write config and weights as `save_pretrained` does. A collective.

    Args:
        skip: leave out parameters with this in their name.
        plain: with the names and layout of the family's checkpoints, for `from_pretrained` and servers; False: with
            those of the modules, for `read_weights`.
        writer: whether this process writes.
    """
    if writer:
        directory.mkdir(parents=True, exist_ok=True)
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]  # FSDP2 subclasses the model
        model.config.save_pretrained(directory)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(directory)
    tensors = ((name, tensor) for name, tensor in weights(model) if skip not in name)
    convert = partial(revert_weight_conversion, model) if plain else dict
    write(tensors, directory, "model", writer=writer, convert=convert, desc="Writing weights")


def save_connection(connected: ConnectedModel, directory: Path, embedding: Tensor, *, writer: bool) -> None:
    """Write the connection as `ConnectedModel.save_pretrained` does. A collective."""
    state = connected.connection_state()
    write(state.items(), directory, serialization.WEIGHTS_STEM, writer=writer, desc="Writing connection")
    if writer:
        serialization.save_config(connected, directory, serialization.base_is_trained(connected), embedding)


def connection_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict's `...layers.<number>.<ATTRIBUTE>.<part>` to `layers.<number>.<part>`, as on disk."""
    result = {}
    for name, tensor in state.items():
        before, part = name.split(f".{ATTRIBUTE}.")
        result[f"layers.{before.rsplit('.', 1)[1]}.{part}"] = tensor
    return result


def whole_embedding(model: nn.Module) -> Tensor:
    """The base's whole input embedding, by which a saved connection recognises its base."""
    embedding = unwrap(model).get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters([embedding]):
            return embedding.detach().cpu().clone()
    return whole(embedding)


def read_weights(model: nn.Module, directory: Path, skip: str) -> None:
    """Load all weights from `directory`, written by a sharded or an unsharded run; each process its own share.

    Parameters with `skip` in their name are left out.

    Raises:
        UserError: names or shapes differ.
    """
    files = ShardReader(directory)
    own = {name: tensor for name, tensor in weights(model) if skip not in name}
    _read(own, files, directory, ignored=model.state_dict().keys() - own.keys())  # tied


def read_adapter(model: nn.Module, directory: Path, adapter: str) -> None:
    """Load a PEFT adapter's weights, each process its own share.

    Raises:
        UserError: names or shapes differ.
    """
    files = ShardReader(directory, SAFETENSORS_WEIGHTS_NAME.removesuffix(".safetensors"))
    in_name = re.compile(rf"\.{re.escape(adapter)}(?=\.|$)")  # PEFT leaves it out of the file
    named = {in_name.sub("", name): tensor for name, tensor in model.named_parameters()}
    _read({name: tensor for name, tensor in named.items() if name in files.file_of}, files, directory)


def _read(own: Mapping[str, Tensor], files: ShardReader, directory: Path, ignored: Collection[str] = ()) -> None:
    odd = sorted(own.keys() ^ (files.keys() - set(ignored)))
    if odd:
        raise UserError(
            f"{directory}: {len(odd)} weights do not match the model's by name (first: {odd[0]}): the checkpoint is "
            "of another family, or in a layout that only from_pretrained converts; start a new run from it."
        )
    for name, tensor in tqdm(own.items(), desc="Reading weights", disable=None, leave=False):
        read_into(tensor, files[name], f"{directory}: {name}")


# -- optimizer -------------------------------------------------------------------------------------------------------


def write_optimizer(optimizer: Any, model: nn.Module, directory: Path, *, writer: bool) -> None:
    """Write the optimizer's state by parameter name. A collective."""
    groups = _names(optimizer, model)
    tensors: list[tuple[str, Tensor]] = []
    numbers: dict[str, dict[str, Any]] = {}
    for group, names in zip(optimizer.param_groups, groups, strict=True):
        for parameter, name in zip(group["params"], names, strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors.append((f"{name}/{key}", value))
                else:
                    numbers.setdefault(name, {})[key] = value
    write(tensors, directory, OPTIMIZER_STEM, writer=writer, desc="Writing optimizer")
    if writer:
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        record = {"groups": options, "names": groups, "state": numbers}
        write_atomically(directory / OPTIMIZER_RECORD, json.dumps(record))


def has_optimizer(directory: Path) -> bool:
    """Whether a sharded run wrote its optimizer in `directory`."""
    return (directory / OPTIMIZER_RECORD).is_file()


def read_optimizer(optimizer: Any, model: nn.Module, directory: Path) -> None:
    """Load the optimizer from `directory`, written by a sharded or an unsharded run; each process its own share.

    Raises:
        UserError: it is of other parameters.
    """
    groups = _names(optimizer, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    flat = [name for names in groups for name in names]
    if has_optimizer(directory):
        record = json.loads((directory / OPTIMIZER_RECORD).read_text(encoding="utf-8"))
        if record["names"] != groups:
            raise UserError(f"{directory}: its optimizer's parameters are not those of this run; start a new run.")
        state: dict[int, dict[str, Any]] = {}
        places = {name: place for place, name in enumerate(flat)}
        for entry, value in tqdm(
            ShardReader(directory, OPTIMIZER_STEM).items(), desc="Reading optimizer", leave=False
        ):
            name, _, key = entry.rpartition("/")
            state.setdefault(places[name], {})[key] = _part(parameters[places[name]], value)
        for name, numbers in record["state"].items():
            state.setdefault(places[name], {}).update(numbers)
        options = record["groups"]
    else:
        saved = torch.load(directory / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        options = saved["param_groups"]
        if [len(group["params"]) for group in options] != [len(names) for names in groups]:
            raise UserError(f"{directory}: its optimizer's parameters are not those of this run; start a new run.")
        state = {
            place: {key: _part(parameters[place], value) for key, value in values.items()}
            for place, values in saved["state"].items()
        }
    numbered = iter(range(len(flat)))
    restored = [
        {**group, "params": [next(numbered) for _ in names]} for group, names in zip(options, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def _part(parameter: Tensor, value: Any) -> Any:
    """This process's share of a parameter's state. A state of another shape (a step count) is not sharded."""
    return shard_like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _names(optimizer: Any, model: nn.Module) -> list[list[str]]:
    """Names of the parameters of each group, in order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
