"""Bases with quantised weights (QLoRA)."""

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


def keep_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes (0.50) from repacking 4-bit weights on a CPU the first time that they run in evaluation mode.

    Its kernel for the other packing has no gradient, and torch no more than warns: after one evaluation, or one
    reference pass, nothing below the last layer would learn.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
