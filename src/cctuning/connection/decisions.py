"""Decision Makers: how much of the reference each dimension takes.

They see the difference between the two activations and nothing else, so what they learn does not depend on where in
the row a position stands. Layer selection, the paper's other form of decision, is in adaptive.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cctuning.connection.config import ConnectionConfig


class Gate(nn.Module):
    """`a = sigmoid(D(e - h))` in [0, 1]^d; D is affine, d -> d, or d -> r -> d where a rank is given.

    The map starts at zero, so that at the first step every dimension takes `sigmoid(bias)` of the reference
    (arXiv 2506.00875, section 3.2, read per layer and per dimension).
    """

    def __init__(self, size: int, bias: float, rank: int | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False) if rank else None
        self.up = nn.Linear(rank or size, size)
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.up.bias, bias)

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        """Weights (N, d) for reference activations `e` (N, d) and the row's own `h` (N, d)."""
        difference = (reference - own).to(self.up.weight.dtype)
        if self.down is not None:
            difference = self.down(difference)
        return torch.sigmoid(self.up(difference)).to(own.dtype)


class FixedBlend(nn.Module):
    """`a = c` everywhere: the ablation without a decision (0.5), and with 1 the plain alignment to the reference."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        """A scalar tensor that broadcasts over (N, d)."""
        return own.new_full((), self.value)


def build_decision(config: ConnectionConfig, size: int) -> nn.Module:
    """The Decision Maker that `config` names, for activations of width `size`."""
    if config.decision == "fixed":
        return FixedBlend(config.decision_value)
    return Gate(size, config.decision_bias, config.decision_rank)
