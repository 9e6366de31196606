"""What the processor can do."""

from __future__ import annotations

import torch

BF16 = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")  # x86, x86, ARM, ARM


def multiplies_in_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16, with which it is faster than in float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in BF16)
