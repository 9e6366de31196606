"""What a batch says for the log: its loss by parts, and with `log_connection` each layer's decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection import LayerConnection
from cctuning.model.connected import ConnectedModel
from cctuning.model.objective import ConnectedOutput

PARTS = ("student_loss", "fused_loss", "align_loss", "identity_loss", "distill_loss", "decision")


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


def batch_metrics(
    outputs: ConnectedOutput, gather: Callable[[Tensor], Tensor], filler: bool, decisions: Mapping[int, Tensor]
) -> dict[str, float]:
    """The batch's figures by name, over all processes; what no process has is left out. A collective.

    Args:
        gather: one tensor of each process -> theirs together.
        filler: this process has no rows left, and joins in with another's; nothing of it counts.
        decisions: of `watch_decisions`.
    """
    found: dict[str, float] = {}
    assert outputs.correct is not None and outputs.scored is not None and outputs.loss is not None
    correct, scored = gather(outputs.correct).sum(), gather(outputs.scored).sum()
    if scored > 0:
        found["mean_token_accuracy"] = (correct / scored).item()
    for name in PARTS:
        value = None if filler else getattr(outputs, name)
        # A rank whose batch has no such part joins the gather with NaN, which is left out of the mean.
        mean = gather((value if value is not None else outputs.loss.detach() * torch.nan).float()).nanmean()
        if not torch.isnan(mean):
            found[name] = mean.item()
    if decisions:
        means = gather(torch.stack(list(decisions.values()))[None]).nanmean(dim=0)
        for layer, mean in zip(decisions, means.tolist(), strict=True):
            if mean == mean:  # NaN: no row of this batch connects, on any rank
                found[f"decision_layer_{layer:02d}"] = mean
    return found
