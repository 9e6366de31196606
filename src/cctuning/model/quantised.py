"""Bases with quantised weights (QLoRA): which they are, and their weights in floating point again."""

from __future__ import annotations

from typing import Any

from torch import nn

from cctuning.model.sites import unwrap


def is_quantised(model: nn.Module) -> bool:
    """Whether the base's weights are quantised, by any of transformers' methods."""
    base: Any = unwrap(model)
    return (
        getattr(base, "hf_quantizer", None) is not None
        or getattr(base.config, "quantization_config", None) is not None
    )
