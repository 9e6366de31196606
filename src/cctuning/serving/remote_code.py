"""A run with a non-linear transform as a checkpoint with a modelling file of its own.

Such a transform folds into nothing, but the pass that inference runs is the base and one small map a layer. So the
checkpoint carries the base's weights, the maps, and `modeling_connected.py` (beside this file), which says in some
sixty lines what is done with them. Code in a checkpoint is for its user to allow: the config names a model type that
transformers does not know, so that without `trust_remote_code=True` it loads nothing at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.connection.transforms import NonlinearTransform
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model.connected import ConnectedModel
from cctuning.model.loading import Loaded
from cctuning.model.merge import check_adapter_mergeable, check_finite
from cctuning.model.sites import find_sites, unwrap
from cctuning.serving import modeling_connected as template


def write_code(
    loaded: Loaded, directory: Path, dtype: torch.dtype | None = None, max_shard_size: str | None = None
) -> None:
    """Write a checkpoint that `AutoModelForCausalLM` loads with `trust_remote_code=True` and without this package.

    A LoRA on the base is merged first. The model in `loaded` is taken apart.

    Args:
        loaded: a run with `transform: nonlinear` and `scope: all`.
        directory: created if missing. The tokenizer is not written.
        dtype: of the base's weights; None keeps theirs. The maps stay in the precision they were trained in.
        max_shard_size: of the weights' files, like `5GB`; None: transformers' own.

    Raises:
        UserError: the run's transform needs no code or cannot be written so, or the base is not transformers' own.
    """
    connected = loaded.connected
    if connected is None:
        raise UserError("--format code: no connection in this model; export it with --format merged.")
    _check(connected.config)
    model: Any
    model, maps = _plain_and_maps(connected)
    base, config = type(model), type(model.config)
    for kind in (base, config):
        if getattr(transformers, kind.__name__, None) is not kind:
            raise UserError(
                f"--format code: {kind.__name__} is not one of transformers' own classes, which the modelling file "
                "builds on; serve the run with cctuning generate."
            )
    if dtype is not None:
        model.to(dtype)
    sites = {site.index: site for site in find_sites(model)}
    blocks = {}
    for index, trained in maps.items():
        site = sites[index]
        weight = trained.up.weight
        moved = template.Transform(site.size, trained.down.out_features).to(weight.device, weight.dtype)
        moved.load_state_dict(trained.state_dict())
        site.layer.add_module(template.NAME, moved)
        blocks[site.name] = next(name for name, module in site.layer.named_modules() if module is site.block)
    size = {"max_shard_size": max_shard_size} if max_shard_size else {}
    # Not in the base's published layout: transformers would look up how to read that by the model type.
    model.save_pretrained(directory, save_original_format=False, **size)
    _write_config(directory, {"rank": connected.config.transform_rank, "blocks": blocks})
    source = Path(template.__file__).read_text(encoding="utf-8")
    source = source.replace("LlamaConfig as", f"{config.__name__} as").replace(
        "LlamaForCausalLM as", f"{base.__name__} as"
    )
    write_atomically(directory / Path(template.__file__).name, source)


def _check(config: ConnectionConfig) -> None:
    if config.mergeable:
        raise UserError("--format code: this connection folds, and needs no code; export it with --format merged.")
    for name, needed in (("connection", "gated"), ("scope", "all"), ("transform", "nonlinear")):
        if (found := getattr(config, name)) != needed:
            raise UserError(
                f"--format code: made for {name}: {needed}, and this run has {name}: {found}; serve it with cctuning "
                "generate."
            )


def _plain_and_maps(connected: ConnectedModel) -> tuple[PreTrainedModel, dict[int, NonlinearTransform]]:
    """The base by itself, adapters merged, and each connected layer's map."""
    maps = {index: part.transform for index, part in connected.connections.items()}
    for index, part in maps.items():
        check_finite(index, part)
    check_adapter_mergeable(connected.model)
    plain: Any = connected.unload()
    if isinstance(plain, PeftModel):
        plain = plain.merge_and_unload()
    return unwrap(plain), maps


def _write_config(directory: Path, connection: dict[str, Any]) -> None:
    """Make the base's config.json, just written, that of the modelling file's classes."""
    path = directory / "config.json"
    module = Path(template.__file__).stem
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {
        "architectures": [template.ConnectedForCausalLM.__name__],
        "auto_map": {
            "AutoConfig": f"{module}.{template.ConnectedConfig.__name__}",
            "AutoModelForCausalLM": f"{module}.{template.ConnectedForCausalLM.__name__}",
        },
        "connection": connection,
        "model_type": f"connected_{config['model_type']}",
    }
    write_atomically(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
