"""A causal language model with a small non-linear map after the feed-forward block of each of its layers.

`cctuning export --format code` puts this file into a checkpoint, with the base model's own classes imported below, so
that `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` loads it with transformers and torch alone. It
reads no file, opens no connection and imports nothing else. Source of the method: arXiv 2506.00875.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig as BaseConfig
from transformers import LlamaForCausalLM as BaseModel

NAME = "connection"  # of the map, inside the layer it belongs to


class ConnectedConfig(BaseConfig):
    """The base's config, and `connection`: {"rank": width of the map, "blocks": {layer's path: its FFN's path}}.

    The model type is one that transformers does not know. Under the base's own, it would load the base's class from
    this checkpoint without a question, and drop the maps.
    """

    model_type = f"connected_{BaseConfig.model_type}"


class Transform(nn.Module):
    """`h -> h + silu(h A + c) B` on the feed-forward block's output h (..., d), before any norm or residual."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank)
        self.up = nn.Linear(rank, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        delta = self.up(nn.functional.silu(self.down(hidden.to(self.up.weight.dtype))))
        return hidden + delta.to(hidden.dtype)

    def hook(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the block: its output, changed; what a mixture of experts returns beside it is kept."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


class ConnectedForCausalLM(BaseModel):
    """The base's model with a `Transform` in each connected layer."""

    config_class = ConnectedConfig
    # As they were trained. In half precision small weights would be lost.
    _keep_in_fp32_modules_strict = [*(BaseModel._keep_in_fp32_modules_strict or ()), NAME]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.get_text_config().hidden_size
        for path, block in config.connection["blocks"].items():
            layer = self.get_submodule(path)
            transform = Transform(size, config.connection["rank"])
            layer.add_module(NAME, transform)
            layer.get_submodule(block).register_forward_hook(transform.hook)
