"""Transform Matrices: the maps that replace the reference at inference.

Each is written as a residual, `h W = h + delta(h)` with `delta` zero at the start. The untrained model is then the
base model bit for bit (multiplying by a stored identity would not be exact in tf32 or bf16), and weight decay pulls W
towards the identity and not towards zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cctuning.connection.registry import Registry
from cctuning.errors import UserError

if TYPE_CHECKING:
    from cctuning.connection.config import ConnectionConfig


class Transform(nn.Module):
    """Base class: a trainable map of FFN outputs. `forward` returns `delta(h)`, of the shape and dtype of `h`.

    Register a class of your own with `@register_transform("name")`. Where the map is linear, set `linear = True` and
    define `matrix` so that it can be merged; where it is of low rank, define `factors` so that it can be exported as a
    LoRA. `size` is d, the width of the activations.
    """

    linear = False

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__()

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`delta(h)`, and `||delta(h)||^2` of each position in fp32, of the shape of `hidden` without d."""
        delta: Tensor = self(hidden)
        return delta, delta.float().square().sum(dim=-1)

    def matrix(self) -> Tensor:
        """M of W = I + M: (d, d), row convention, fp32, detached."""
        raise UserError(
            f"transform: {type(self).__name__} is not linear and cannot be merged; serve it with cctuning generate, "
            "or train with transform: low_rank or dense."
        )

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """A (d, r) and B (r, d) of W = I + A B, fp32, detached; None where there are no such factors."""
        return None


TRANSFORMS = Registry("transform", Transform)
register_transform = TRANSFORMS.register


@register_transform("low_rank")
class LowRankTransform(Transform):
    """`h W = h + (h A) B` with A (d, r) random and B (r, d) zero at the start; r is `transform_rank`.

    Can be merged into the weights and exported as a LoRA (model/lora.py).
    """

    linear = True

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.down = nn.Linear(size, config.transform_rank, bias=False)  # weight is A transposed: (r, d)
        self.up = nn.Linear(config.transform_rank, size, bias=False)  # weight is B transposed: (d, r)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # as in LoRA
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(self.down(_cast(hidden, self.down))).to(hidden.dtype)

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, with `||z B||^2 = z (B B^T) z^T` for z = h A: r numbers a position are read, and kept
        for backward, in place of d (docs/results/performance.md)."""
        z = self.down(_cast(hidden, self.down))
        rows = self.up(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device))  # B, by a call, as ZeRO-3 needs it
        with torch.autocast(z.device.type, enabled=False):  # a norm of rounded products would be noise
            narrow, rows = z.float(), rows.float()
            norm = ((narrow @ (rows @ rows.T)) * narrow).sum(dim=-1)
        return self.up(z).to(hidden.dtype), norm

    def matrix(self) -> Tensor:
        a, b = self.factors()
        return a @ b

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.down.weight.detach().float().T, self.up.weight.detach().float().T


@register_transform("dense")
class DenseTransform(Transform):
    """`h W = h + h M` with M (d, d) zero at the start. Can be merged; a LoRA of it would have full rank."""

    linear = True

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.map = nn.Linear(size, size, bias=False)  # weight is M transposed
        nn.init.zeros_(self.map.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.map(_cast(hidden, self.map)).to(hidden.dtype)

    def matrix(self) -> Tensor:
        return self.map.weight.detach().float().T


@register_transform("nonlinear")
class NonlinearTransform(Transform):
    """`h -> h + silu(h A + c) B` with B zero at the start: a small residual block. Cannot be merged."""

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.down = nn.Linear(size, config.transform_rank)
        self.up = nn.Linear(config.transform_rank, size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(nn.functional.silu(self.down(_cast(hidden, self.down)))).to(hidden.dtype)


TRANSFORMS["none"] = None


def build_transform(config: ConnectionConfig, size: int) -> Transform | None:
    """The transform of `config` for activations of width `size`; None for `transform: none`."""
    cls = TRANSFORMS[config.transform]
    return None if cls is None else cls(config, size)


def _cast(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """`hidden` in the dtype of `layer`; under autocast it stays as it is, for the layer casts it itself."""
    return hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(layer.weight.dtype)
