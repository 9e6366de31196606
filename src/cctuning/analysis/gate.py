"""Where the reference language is borrowed: how much of it each layer and dimension takes, by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cctuning.analysis.observe import LanguageBatch, languages_of, observe
from cctuning.model.connected import ConnectedModel


@dataclass(frozen=True)
class GateStatistics:
    """The decision a in [0, 1] over the connected positions: 0 keeps the row's own activation, 1 takes the other.

    Attributes:
        layers: L numbers of decoder layers. languages: G codes. positions: (G,) connected positions seen.
        mean: (G, L, d) mean share of each dimension.
        deviation: (G, L) standard deviation over positions, mean over dimensions: near 0, the gate does the same
            whatever it is given.
    """

    layers: list[int]
    languages: list[str]
    positions: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def by_layer(self) -> Tensor:
        """(G, L) mean over dimensions."""
        return self.mean.mean(dim=-1)

    @property
    def by_dimension(self) -> Tensor:
        """(L, d) mean over languages, each with the same weight."""
        return self.mean.mean(dim=0)

    def quantiles(self, at: Sequence[float]) -> Tensor:
        """(L, len(at)) quantiles over a layer's dimensions of `by_dimension`."""
        return torch.quantile(self.by_dimension, torch.tensor(list(at), dtype=self.mean.dtype), dim=1).T

    def strongest(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` dimensions of each layer that take most: shares (L, count), falling, and their numbers."""
        top = self.by_dimension.topk(min(count, self.mean.shape[-1]), dim=1)
        return top.values, top.indices


def gate_statistics(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> GateStatistics:
    """How far each layer's gate is open, by language and by dimension, on the student pass.

    One forward and one reference pass a batch; memory G x L x d, whatever the number of rows.

    Args:
        connected: a gated connection in eval mode.
        batches: of `language_batches`; rows the model was not trained on say most.
    """
    layers, languages = sorted(connected.decisions), languages_of(batches)
    if not layers:
        raise ValueError("connected: it has no Decision Maker (connection: none, or adaptive: see layer_choice)")
    total = torch.zeros(0)
    squares, counts = total, torch.zeros(len(languages), dtype=torch.float64)
    for seen in observe(connected, batches):
        if not total.numel():
            total = torch.zeros(len(languages), len(layers), seen.own.shape[1], dtype=torch.float64)
            squares = torch.zeros_like(total)
        at = languages.index(seen.language), layers.index(seen.layer)
        share = seen.share.double().cpu()
        total[at] += share.sum(dim=0)
        squares[at] += share.square().sum(dim=0)
        counts[at[0]] += len(share) if at[1] == 0 else 0
    count = counts.clamp(min=1)[:, None, None]
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt().mean(dim=-1)
    return GateStatistics(layers, languages, counts.long(), mean.float(), deviation.float())


@dataclass(frozen=True)
class LayerChoice:
    """Which layer's activation an adaptive connection adds: `share` (G, L), the share of rows that chose each."""

    languages: list[str]
    rows: Tensor
    share: Tensor


@torch.no_grad()
def layer_choice(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> LayerChoice | None:
    """The layers that an adaptive connection chooses, by language, when it is given the references; None for another
    connection, which does not choose layers."""
    languages = languages_of(batches)
    counts = torch.zeros(len(languages), len(connected.observed_layers))
    for batch in batches:
        rows = batch.build(connected.model.device)
        share = connected.layer_choice(rows)
        if share is None:
            return None
        counts[languages.index(batch.language)] += share.cpu() * int(rows.paired.sum())
    return LayerChoice(languages, counts.sum(dim=1).long(), counts / counts.sum(dim=1, keepdim=True).clamp(min=1))
