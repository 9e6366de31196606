"""Transform Matrices: what stands in for the reference at inference.

Each is written as a residual, `h W = h + delta(h)`, with `delta` zero at the start. That makes the untrained model the
base model bit for bit (adding exact zeros; multiplying by a stored identity would not be exact in tf32 or bf16), and
lets weight decay pull W towards the identity and not towards zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cctuning.connection.config import ConnectionConfig
from cctuning.errors import UserError


def _input(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """`hidden` in the dtype that `layer` computes in; under autocast it casts for itself, and once is enough."""
    return hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(layer.weight.dtype)


class Transform(nn.Module):
    """A trainable map of FFN outputs in residual form: `forward` gives `delta(h)`, of the shape and dtype of `h`."""

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`delta(h)` and how far it moves each position: `||delta(h)||^2` in fp32, the shape of `hidden` without d."""
        delta: Tensor = self(hidden)
        return delta, delta.float().square().sum(dim=-1)


class LowRankTransform(Transform):
    """`h W = h + (h A) B`, so W = I + A B with A (d, r) random and B (r, d) zero at the start.

    Folds into a projection and exports as a LoRA (model/lora.py). Row convention.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)  # weight is A transposed: (r, d)
        self.up = nn.Linear(rank, size, bias=False)  # weight is B transposed: (d, r)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # LoRA's usual start
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """`delta(h)`, the shape and dtype of `hidden` (..., d)."""
        return self.up(self.down(_input(hidden, self.down))).to(hidden.dtype)

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As the parent's, with `||z B||^2 = z (B B^T) z^T` for z = h A: r numbers a position are read, and kept for
        backward, in place of d (docs/results/performance.md has what that saves)."""
        z = self.down(_input(hidden, self.down))
        rows = self.up(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device))  # B; by a call, as ZeRO-3 wants it
        with torch.autocast(z.device.type, enabled=False):  # a norm of rounded products would be noise
            narrow, rows = z.float(), rows.float()
            norm = ((narrow @ (rows @ rows.T)) * narrow).sum(dim=-1)
        return self.up(z).to(hidden.dtype), norm

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (d, r) and B (r, d) of W = I + A B, in fp32, detached."""
        return self.down.weight.detach().float().T, self.up.weight.detach().float().T


class DenseTransform(Transform):
    """`h W = h + h M`, so W = I + M with M (d, d) zero at the start. Folds; exports as a LoRA only of full rank."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map = nn.Linear(size, size, bias=False)  # weight is M transposed
        nn.init.zeros_(self.map.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """`delta(h)`, the shape and dtype of `hidden` (..., d)."""
        return self.map(_input(hidden, self.map)).to(hidden.dtype)


class NonlinearTransform(Transform):
    """`h -> h + silu(h A + c) B` with B zero at the start: a small residual block. Cannot be folded."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, width)
        self.up = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """`delta(h)`, the shape and dtype of `hidden` (..., d)."""
        return self.up(nn.functional.silu(self.down(_input(hidden, self.down)))).to(hidden.dtype)


def build_transform(config: ConnectionConfig, size: int) -> Transform | None:
    """The transform that `config` names for activations of width `size`; None where there is none."""
    if config.transform == "none":
        return None
    if config.transform == "dense":
        return DenseTransform(size)
    if config.transform == "nonlinear":
        return NonlinearTransform(size, config.transform_rank)
    return LowRankTransform(size, config.transform_rank)


def delta_matrix(transform: nn.Module) -> Tensor:
    """M of W = I + M for a linear transform: (d, d), row convention, fp32, detached.

    Raises:
        UserError: the transform is not linear.
    """
    if isinstance(transform, LowRankTransform):
        a, b = transform.factors()
        return a @ b
    if isinstance(transform, DenseTransform):
        return transform.map.weight.detach().float().T
    raise UserError(
        f"transform: {type(transform).__name__} is not linear and cannot be folded; serve it with cctuning generate, "
        "or train with transform: low_rank or dense."
    )
