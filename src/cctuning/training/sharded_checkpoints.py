"""A run whose weights are sharded (FSDP2), on disk as if they were whole: any other run reads it, and it any other.

accelerate's own sharded format holds pickles, reads back under FSDP only, and leaves the connection out where the base
has a LoRA; its full format gathers everything in one process. So weights are gathered one layer at a time, written by
the first process and dropped, into the files an unsharded run writes; every process reads back its own share of them,
one tensor at a time. Optimiser states go the same way, by the parameter's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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

OPTIMIZER_STEM = "optimizer"  # optimizer.json, optimizer.safetensors (or its shards)
LAYER = re.compile(r".*?\.\d+\.")


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight of `model` is a shard."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, detached. Of a shard: a collective, every process calls it."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by name; tied ones once."""
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
    """Write `tensors`, gathered a layer at a time. A collective.

    Args:
        tensors: by name, the same in the same order in every process.
        directory: exists. stem: of the files' names.
        writer: whether this process writes.
        convert: from the model's names and layout to those on disk, for a layer at a time.
        desc: what a person reads beside the bar.
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
        skip: parameters with this in their name are saved elsewhere.
        plain: with the names and layout that the family has on the hub, for `from_pretrained` and servers; False: as
            the model has them in memory, to be read back by `read_weights`.
        writer: whether this process writes.
    """
    if writer:
        directory.mkdir(parents=True, exist_ok=True)
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]  # torch shards by subclassing
        model.config.save_pretrained(directory)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(directory)
    tensors = ((name, tensor) for name, tensor in weights(model) if skip not in name)
    convert = partial(revert_weight_conversion, model) if plain else dict
    write(tensors, directory, "model", writer=writer, convert=convert, desc="Writing weights")


def save_connection(connected: ConnectedModel, directory: Path, embedding: Tensor, *, writer: bool) -> None:
    """Write the connection as `ConnectedModel.save_pretrained` does. A collective.

    Args:
        embedding: the base's input embedding, gathered.
        writer: whether this process writes.
    """
    state = connected.connection_state()
    write(state.items(), directory, serialization.WEIGHTS_STEM, writer=writer, desc="Writing connection")
    if writer:
        serialization.save_config(connected, directory, serialization.base_is_trained(connected), embedding)


def connection_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's `…layers.<number>.<ATTRIBUTE>.<part>` as `layers.<number>.<part>`, the names on disk."""
    result = {}
    for name, tensor in state.items():
        before, part = name.split(f".{ATTRIBUTE}.")
        result[f"layers.{before.rsplit('.', 1)[1]}.{part}"] = tensor
    return result


def whole_embedding(model: nn.Module) -> Tensor:
    """The base's input embedding, gathered where it is sharded, by which a saved connection knows its base again."""
    embedding = unwrap(model).get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters([embedding]):
            return embedding.detach().cpu().clone()
    return whole(embedding)


def read_weights(model: nn.Module, directory: Path, skip: str) -> None:
    """Load the weights that `write` (or an unsharded run) left in `directory`, each process its own share.

    Args:
        model: full weights. skip: parameters with this in their name are loaded elsewhere.

    Raises:
        UserError: names or shapes differ.
    """
    files = ShardReader(directory)
    own = {name: tensor for name, tensor in weights(model) if skip not in name}
    tied = model.state_dict().keys() - own.keys()
    odd = sorted(own.keys() ^ (files.keys() - tied))
    if odd:
        raise UserError(
            f"{directory}: its weights have other names than the model's ({len(odd)}, first: {odd[0]}): a checkpoint "
            "of another family, or in a layout that only from_pretrained converts; start a new run from it."
        )
    for name, tensor in tqdm(own.items(), desc="Reading weights", disable=None, leave=False):
        read_into(tensor, files[name], f"{directory}: {name}")


def read_adapter(model: nn.Module, file: Path, adapter: str) -> None:
    """Load a PEFT adapter's weights, each process its own share.

    Raises:
        UserError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    with safe_open(file, framework="pt") as weights_file:
        for key in weights_file.keys():  # noqa: SIM118  # no mapping, and not iterable
            head, _, tail = key.rpartition(".")
            name = f"{head}.{adapter}.{tail}"
            if name not in own:
                raise UserError(f"{file}: {key} is no part of this model's adapter.")
            read_into(own[name], weights_file.get_tensor(key), f"{file}: {key}")


# -- optimiser -------------------------------------------------------------------------------------------------------


def write_optimizer(optimizer: Any, model: nn.Module, directory: Path, *, writer: bool) -> None:
    """Write the optimiser's state by parameter name. A collective."""
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
    write(tensors, directory, OPTIMIZER_STEM, writer=writer, desc="Writing optimiser")
    if writer:
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        record = {"groups": options, "names": groups, "state": numbers}
        write_atomically(directory / f"{OPTIMIZER_STEM}.json", json.dumps(record))


def has_optimizer(directory: Path) -> bool:
    """Whether a sharded run wrote its optimiser in `directory`."""
    return (directory / f"{OPTIMIZER_STEM}.json").is_file()


def read_optimizer(optimizer: Any, model: nn.Module, directory: Path) -> None:
    """Load the optimiser that a sharded or an unsharded run left in `directory`, each process its own share.

    Raises:
        UserError: it belongs to other parameters.
    """
    groups = _names(optimizer, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    flat = [name for names in groups for name in names]
    if has_optimizer(directory):
        record = json.loads((directory / f"{OPTIMIZER_STEM}.json").read_text(encoding="utf-8"))
        if record["names"] != groups:
            raise UserError(f"{directory}: its optimiser's parameters are not those of this run; start a new run.")
        state: dict[int, dict[str, Any]] = {}
        places = {name: place for place, name in enumerate(flat)}
        for entry, value in tqdm(
            ShardReader(directory, OPTIMIZER_STEM).items(), desc="Reading optimiser", leave=False
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
            raise UserError(f"{directory}: its optimiser's parameters are not those of this run; start a new run.")
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
    """This process's share of a parameter's state; what has another shape (a step count) is whole everywhere."""
    return shard_like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _names(optimizer: Any, model: nn.Module) -> list[list[str]]:
    """Names of each group's parameters, in order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
