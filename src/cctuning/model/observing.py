"""What the gated connection sees: both activations, the decision and the transform at the connected positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cctuning.connection import equations, predicting
from cctuning.model.passes import Batch, plan_inference

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel


@dataclass(frozen=True)
class Observed:
    """One layer's connection over one batch: N connected positions.

    Attributes:
        layer: number of the decoder layer.
        reference, own: (N, d) fp32 activations e and h. share: (N, d) the decision a in [0, 1].
        changed: (N, d) h W, the output of the transform; h itself where there is none.
        row: (N,) row of each position.
    """

    layer: int
    reference: Tensor
    own: Tensor
    share: Tensor
    changed: Tensor
    row: Tensor


def observe(connected: ConnectedModel, batch: Batch) -> Iterator[Observed]:
    """See `ConnectedModel.observe`. A hook on each Decision Maker sees both activations at the connected positions."""
    assert batch.labels is not None
    plan = plan_inference(batch, connected.config, predicting(batch.labels))
    plan.fused = None  # no row is fused: the activations are those of the model when it answers
    connected.references.offer(batch, plan)
    decided: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
            decided[layer] = (args[0], args[1], output)

        return keep

    handles = [decision.register_forward_hook(keeper(layer)) for layer, decision in connected.decisions.items()]
    try:
        connected.run(plan, batch)
    finally:
        for handle in handles:
            handle.remove()
    assert plan.connect_row is not None
    for layer, (reference, own, share) in decided.items():
        connection = connected.connections[layer]
        reference, own = (connection.activations(side) for side in (reference, own))  # the Decision Maker sees units
        changed = own if connection.transform is None else equations.transform(own, connection.transform)
        shares = share.float().expand_as(own)
        yield Observed(layer, reference.float(), own.float(), shares, changed.float(), plan.connect_row)
