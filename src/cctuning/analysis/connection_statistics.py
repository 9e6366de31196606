"""Measure a trained connection: how far its gate is open, and what its transform does, by layer and language."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cctuning.analysis.observe import LanguageBatch, languages_of, observe
from cctuning.connection.equations import ratio
from cctuning.model.connected import ConnectedModel


@dataclass(frozen=True)
class GateStatistics:
    """The gate a in [0, 1] at the connected positions: 0 keeps the prompt's own activation, 1 takes the reference's.

    Attributes:
        layers: L numbers of decoder layers. languages: G codes. positions: (G,) connected positions seen.
        mean: (G, L, d) mean share of each dimension.
        deviation: (G, L) standard deviation over positions, mean over dimensions; near 0, the gate does not depend on
            its input.
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
        """(L, d) mean over languages with equal weights."""
        return self.mean.mean(dim=0)

    def quantiles(self, at: Sequence[float]) -> Tensor:
        """(L, len(at)) quantiles over a layer's dimensions of `by_dimension`."""
        return torch.quantile(self.by_dimension, torch.tensor(list(at), dtype=self.mean.dtype), dim=1).T

    def strongest(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` dimensions of each layer with the largest shares: shares (L, count), descending, and indices."""
        top = self.by_dimension.topk(min(count, self.mean.shape[-1]), dim=1)
        return top.values, top.indices


def gate_statistics(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> GateStatistics:
    """Mean share of each dimension, by layer and language, in the student pass.

    One forward and one reference pass per batch; memory is G x L x d, whatever the number of rows.

    Args:
        connected: a gated connection in eval mode.
        batches: from `language_batches`, best of held-out rows.
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
    """The layer that an adaptive connection chooses. `share`: (G, L) share of rows that choose each layer."""

    languages: list[str]
    rows: Tensor
    share: Tensor


@torch.no_grad()
def layer_choice(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> LayerChoice | None:
    """The layers that an adaptive connection chooses, given the references; None for other connections."""
    languages = languages_of(batches)
    counts = torch.zeros(len(languages), len(connected.observed_layers))
    for batch in batches:
        rows = batch.build(connected.model.device)
        share = connected.layer_choice(rows)
        if share is None:
            return None
        counts[languages.index(batch.language)] += share.cpu() * int(rows.paired.sum())
    return LayerChoice(languages, counts.sum(dim=1).long(), counts / counts.sum(dim=1, keepdim=True).clamp(min=1))


@dataclass(frozen=True)
class TransformShape:
    """The matrices W = I + M of the layers.

    Attributes:
        layers: L numbers; the adaptive connection has one matrix, as layer 0.
        distance: (L,) ||W - I||_F / ||I||_F: 0 for the identity.
        effective_rank: (L,) of M; from 1 to `rank`, 0 where M is zero.
        rank: the largest rank M can have.
    """

    layers: list[int]
    distance: Tensor
    effective_rank: Tensor
    rank: int


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (n,).

    Between 1 and the rank, which it reaches if all values are equal; 0 for a matrix of zeros.
    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    values = singular_values.double()
    if float(values.sum()) <= 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def transform_shape(connected: ConnectedModel) -> TransformShape | None:
    """Distance from the identity and effective rank of each layer's matrix; None without a matrix.

    A low-rank matrix is never formed; a dense one needs a d x d decomposition per layer.
    """
    values = connected.singular_values()
    if not values:
        return None
    return TransformShape(
        list(values),
        torch.tensor([float(one.square().sum().sqrt()) / math.sqrt(connected.width) for one in values.values()]),
        torch.tensor([effective_rank(one) for one in values.values()]),
        len(next(iter(values.values()))),
    )


@dataclass(frozen=True)
class TransformErrors:
    """How well h W approximates the fused activation f: relative errors of each row, averaged over rows.

    Attributes:
        layers: L numbers. languages: G codes. rows: (G,) rows seen.
        error: (G, L) ||h W - f||^2 / ||f||^2, summed over a row's connected positions.
        identity: (G, L) the error of the identity, ||h - f||^2 / ||f||^2.
        moved: (G, L) ||h W - h||^2 / ||h||^2.
    """

    layers: list[int]
    languages: list[str]
    rows: Tensor
    error: Tensor
    identity: Tensor
    moved: Tensor

    @property
    def closed(self) -> Tensor:
        """(G, L) share of the gap closed, 1 - error / identity: 0 is as good as the identity; NaN without a gap."""
        return torch.where(self.identity > 0, 1 - self.error / self.identity, torch.nan)


def transform_errors(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> TransformErrors:
    """Relative errors of the transform and of the identity, by layer and language.

    Args:
        connected: in eval mode, gated or adaptive.
        batches: from `language_batches`, best of held-out rows: on training rows the error is too small.
    """
    languages = languages_of(batches)
    layers = connected.observed_layers
    if not layers:
        raise ValueError("connected: it has no connection (connection: none), so no transform")
    sums = torch.zeros(3, len(languages), len(layers), dtype=torch.float64)
    rows = torch.zeros(len(languages), dtype=torch.long)
    for seen in observe(connected, batches):
        at = languages.index(seen.language), layers.index(seen.layer)
        target = seen.target
        for kind, (missed, size) in enumerate(
            ((seen.changed - target, target), (seen.own - target, target), (seen.changed - seen.own, seen.own))
        ):
            above, below = (one.square().sum(dim=-1) for one in (missed, size))
            sums[kind][at] += float(ratio(above, below, seen.row, seen.rows).sum())
        rows[at[0]] += seen.rows if at[1] == 0 else 0
    error, identity, moved = (sums / rows.clamp(min=1)[:, None]).float()
    return TransformErrors(layers, languages, rows, error, identity, moved)
