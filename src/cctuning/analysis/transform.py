"""What a Transform Matrix does: how far it stands from the identity, in how many directions, and what it misses."""

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
class TransformShape:
    """The matrices W = I + M of the layers, without any data.

    Attributes:
        layers: L numbers; the adaptive connection has one matrix, as layer 0.
        distance: (L,) ||W - I||_F / ||I||_F: 0 is doing nothing, 1 a change as large as the identity itself.
        effective_rank: (L,) of M; from 1 to `rank`, 0 where M is zero.
        rank: the largest rank M can have.
    """

    layers: list[int]
    distance: Tensor
    effective_rank: Tensor
    rank: int


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (n,): how many directions carry the matrix.

    Between 1 and the rank; equal to it where the values are equal; 0 for a matrix of zeros.
    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    values = singular_values.double()
    if float(values.sum()) <= 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def transform_shape(connected: ConnectedModel) -> TransformShape | None:
    """Distance from the identity and effective rank of each layer's matrix; None where there is no matrix.

    A low-rank matrix is never formed: its singular values are those of a small factor. A dense one takes a d x d
    decomposition a layer.
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
    """How well h W stands in for the fused activation f. Means over rows of each row's own relative error.

    Attributes:
        layers: L numbers. languages: G codes. rows: (G,) rows seen.
        error: (G, L) ||h W - f||^2 / ||f||^2, summed over a row's connected positions.
        identity: (G, L) the same of doing nothing, ||h - f||^2 / ||f||^2.
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
        """(G, L) share of the gap that the transform closes, 1 - error / identity: 0 as good as doing nothing,
        below 0 worse; NaN where there is no gap."""
        return torch.where(self.identity > 0, 1 - self.error / self.identity, torch.nan)


def transform_errors(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> TransformErrors:
    """The transform's relative error by layer and language, beside that of the identity.

    Args:
        connected: in eval mode, gated or adaptive.
        batches: of `language_batches`; on rows it was trained on, the error is too small.
    """
    languages = languages_of(batches)
    layers = connected.observed_layers
    if not layers:
        raise ValueError("connected: it has no connection (connection: none), so nothing to imitate")
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
