"""One layer's alignment: no module and no weight of its own, only an error that rides on the layer's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cctuning.connection.config import ConnectionConfig
from cctuning.connection.plan import Wire, carry
from cctuning.connection.pooled import Statistics, error, pool


class Enough(Exception):
    """Ends a forward above whose last aligned layer nothing is wanted."""


class LayerAlignment:
    """Forward hook of a decoder layer (`align_at: residual`) or of its FFN block (`ffn`).

    In a pass of mode `record` it keeps the pooled activations of the references; in one of mode `align` it adds the
    gradient of its error (pooled.py) to the layer's output. `statistics` are None until references were recorded.
    """

    def __init__(self, config: ConnectionConfig, index: int, number: int, wire: Wire) -> None:
        """
        Args:
            config: the connection's options. index: the layer's number.
            number: how many layers are aligned (the objective is their mean). wire: shared by all of them.
        """
        self.config, self.index, self.number, self.wire = config, index, number, wire
        self.statistics: Statistics | None = None
        self._carry = torch.compiler.disable(carry)  # for the reason given in gated.py

    def hook(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Registered with kwargs."""
        plan = self.wire.plan
        if not self.wire.enabled or plan is None or plan.spans is None:
            return output
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        grid = hidden.view(plan.rows, plan.positions, -1)
        if plan.mode == "record":
            plan.memory[self.index] = pool(plan.spans, grid), None
            return output
        if plan.row_weight is None:
            return output
        pooled, offer, loss = pool(plan.spans, grid), plan.offered[self.index], self.config.loss
        missed = error(loss, pooled, offer, self.statistics, self.config.align_temperature)
        plan.align_error[self.index] = missed.detach()
        objective = self.config.weight / self.number * (plan.row_weight * missed).sum()
        if plan.stop:
            plan.objective[self.index] = objective
            return output
        carried = self._carry(hidden, objective, plan)
        return (carried, *output[1:]) if isinstance(output, tuple) else carried
