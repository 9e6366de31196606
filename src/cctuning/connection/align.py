"""One aligned layer: no module and no weight, only an error whose gradient is added at the layer's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cctuning.connection.config import ConnectionConfig
from cctuning.connection.equations import objective, pool
from cctuning.connection.plan import Wire, add_objective
from cctuning.connection.pooled import Statistics, error


class Enough(Exception):
    """Ends a forward after the last aligned layer."""


class LayerAlignment:
    """Forward hook of a decoder layer (`align_at: residual`) or of its FFN block (`ffn`).

    In a pass of mode `record` it keeps the pooled activations of the references; in one of mode `align` it adds its
    error to the objective. `statistics` are None until references have been recorded.
    """

    def __init__(self, config: ConnectionConfig, index: int, number: int, wire: Wire) -> None:
        """
        Args:
            config: options of the connection. index: number of the layer.
            number: how many layers are aligned (the objective is their mean). wire: shared by all of them.
        """
        self.config, self.index, self.number, self.wire = config, index, number, wire
        self.statistics: Statistics | None = None
        self._add_objective = torch.compiler.disable(add_objective)  # for the reason given in gated.py

    def hook(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Registered with kwargs."""
        plan = self.wire.plan
        if not self.wire.enabled or plan is None or plan.spans is None:
            return output
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if plan.mode == "record":
            plan.results.memory[self.index] = pool(plan.spans.take(hidden), plan.spans.weight), None
            return output
        if plan.row_weight is None:
            return output
        config, offer = self.config, plan.offered[self.index]
        pooled = pool(plan.spans.take(hidden), plan.spans.weight)
        missed = error(config.loss, pooled, offer, self.statistics, config.align_temperature)
        plan.results.align_error[self.index] = missed.detach()
        term = objective(missed, plan.row_weight, config.weight / self.number)
        changed = self._add_objective(hidden, term, plan, self.index)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
