"""What the decisions say while a model trains: `log_connection`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cctuning.connection import LayerConnection
from cctuning.model.connected import ConnectedModel


def watch_decisions(connected: ConnectedModel) -> dict[int, Tensor]:
    """Layer to the mean decision of its latest forward (detached scalar, NaN where nothing connected), kept up to date
    by a hook on each layer's decision; empty for a connection without one."""
    means: dict[int, Tensor] = {}

    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
            means[layer] = output.detach().float().expand_as(args[1]).mean()

        return keep

    for layer, connection in connected.connections.items():
        if isinstance(connection, LayerConnection):
            connection.decision.register_forward_hook(keeper(layer))
    return means
