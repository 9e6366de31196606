"""Decision Makers: the share of the reference in each dimension of an activation.

They see the difference between the two activations only, so what they learn does not depend on the position in the
row. Layer selection, the paper's other form of decision, is in adaptive.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from cctuning.connection.equations import decide
from cctuning.connection.registry import Registry

if TYPE_CHECKING:
    from cctuning.connection.config import ConnectionConfig


class Decision(nn.Module):
    """Base class. `forward(e, h)` returns the share a in [0, 1], of a shape that broadcasts to (N, d).

    Register a class of your own with `@register_decision("name")`; every parameter of it must get a gradient whatever
    its inputs, as DDP requires. `size` is d, the width of the activations.
    """

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__()


DECISIONS = Registry("decision", Decision)
register_decision = DECISIONS.register


@register_decision("gate")
class Gate(Decision):
    """`a = sigmoid(D(e - h))`: D is affine, d -> d, or d -> r -> d with `decision_rank`.

    D starts at zero, so at the first step every dimension takes `sigmoid(decision_bias)` of the reference.
    """

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        rank = config.decision_rank
        self.down = nn.Linear(size, rank, bias=False) if rank else None
        self.up = nn.Linear(rank or size, size)
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.up.bias, config.decision_bias)

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        return decide(own, reference, self._score).to(own.dtype)

    def _score(self, difference: Tensor) -> Tensor:
        difference = difference.to(self.up.weight.dtype)
        return self.up(difference if self.down is None else self.down(difference))


@register_decision("fixed")
class FixedBlend(Decision):
    """`a = decision_value` everywhere: 0.5 is the ablation without a decision, 1 the alignment to the reference."""

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.value = config.decision_value

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        return own.new_full((), self.value)


def build_decision(config: ConnectionConfig, size: int) -> Decision:
    """The Decision Maker of `config` for activations of width `size`."""
    made: Decision = DECISIONS[config.decision](config, size)
    return made
