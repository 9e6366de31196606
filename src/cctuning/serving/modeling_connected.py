"""A causal language model with a small nonlinear map after the feed-forward block of its connected layers.

`cctuning export --format code` copies this file into a checkpoint and imports the classes of its base model below, so
that `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` needs only transformers and torch. It reads no
files and opens no network connections. Method: arXiv 2506.00875.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig as BaseConfig
from transformers import LlamaForCausalLM as BaseModel

NAME = "connection"  # of the map, as a submodule of its layer


class ConnectedConfig(BaseConfig):
    """Config of the base with `connection`: {"rank": width of the map, "blocks": {path of layer: path of its FFN}}.

    transformers does not know the model type. With that of the base it would load the base's class from this
    checkpoint, without the maps and without an error.
    """

    model_type = f"connected_{BaseConfig.model_type}"


class Transform(nn.Module):
    """`h -> h + silu(h A + c) B` on the output h (..., d) of the feed-forward block, before norm and residual."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank)
        self.up = nn.Linear(rank, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        delta = self.up(nn.functional.silu(self.down(hidden.to(self.up.weight.dtype))))
        return hidden + delta.to(hidden.dtype)

    def hook(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the block; further outputs of a mixture of experts are kept."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


class ConnectedForCausalLM(BaseModel):
    """The base model with a `Transform` in each connected layer."""

    config_class = ConnectedConfig
    # The dtype of training: half precision would lose small weights.
    _keep_in_fp32_modules_strict = [*(BaseModel._keep_in_fp32_modules_strict or ()), NAME]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.get_text_config().hidden_size
        for path, block in config.connection["blocks"].items():
            layer = self.get_submodule(path)
            transform = Transform(size, config.connection["rank"])
            layer.add_module(NAME, transform)
            layer.get_submodule(block).register_forward_hook(transform.hook)
