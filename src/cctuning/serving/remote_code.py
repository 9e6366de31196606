"""Write a run with a nonlinear transform as a checkpoint with its own modeling file.

A nonlinear transform cannot be merged, but inference needs only the base and one small map per layer. The checkpoint
has the base's weights, the maps and a copy of `modeling_connected.py`. transformers does not know its model type and
therefore loads it with `trust_remote_code=True` or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model.loading import Loaded
from cctuning.model.merge import check_adapter_mergeable, check_finite
from cctuning.model.sites import find_sites, unwrap
from cctuning.serving import modeling_connected as template


def write_code(
    loaded: Loaded, directory: Path, dtype: torch.dtype | None = None, max_shard_size: str | None = None
) -> None:
    """Write a checkpoint that `AutoModelForCausalLM` loads with `trust_remote_code=True` and without this package.

    A LoRA on the base is merged first. The model in `loaded` cannot be used afterwards.

    Args:
        loaded: a run with `transform: nonlinear` and `scope: all`.
        directory: created if missing. The tokenizer is not written.
        dtype: of the base's weights; None keeps it. The maps keep the dtype of training.
        max_shard_size: of the files, like `5GB`; None: the default of transformers.

    Raises:
        UserError: the run needs no code or cannot be written with it, or transformers does not have the base's class.
    """
    connected = loaded.connected
    if connected is None:
        raise UserError("--format code: the model has no connection; use --format merged.")
    if connected.config.mergeable:
        raise UserError("--format code: this connection can be merged and needs no code; use --format merged.")
    for name, needed in (("connection", "gated"), ("scope", "all"), ("transform", "nonlinear")):
        if (found := getattr(connected.config, name)) != needed:
            raise UserError(
                f"--format code: needs {name}: {needed}, and this run has {name}: {found}; use cctuning generate."
            )
    maps = {index: part.transform for index, part in connected.connections.items()}
    for index, part in maps.items():
        check_finite(index, part)
    check_adapter_mergeable(connected.model)
    model: Any = connected.unload()
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model = unwrap(model)
    base, config = type(model), type(model.config)
    for kind in (base, config):
        if getattr(transformers, kind.__name__, None) is not kind:
            raise UserError(
                f"--format code: {kind.__name__} is not a class of transformers, which the modeling file imports; "
                "use cctuning generate."
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
    # In the layout of transformers: how to read a published layout depends on the model type, which changes here.
    model.save_pretrained(directory, save_original_format=False, **size)
    _write_config(directory, {"rank": connected.config.transform_rank, "blocks": blocks})
    source = Path(template.__file__).read_text(encoding="utf-8")
    source = source.replace("LlamaConfig as", f"{config.__name__} as").replace(
        "LlamaForCausalLM as", f"{base.__name__} as"
    )
    write_atomically(directory / Path(template.__file__).name, source)


def _write_config(directory: Path, connection: dict[str, Any]) -> None:
    """Change config.json, saved for the base, to the classes of the modeling file."""
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
