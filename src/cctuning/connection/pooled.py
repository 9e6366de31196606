"""What `connection: align` compares: spans of prompts, statistics of the references, and what rows are aligned to.

Of the activation of a pre-trained model 80 to 99.9 % of the squared norm is the same for every prompt: the template,
the position, a few outlier dimensions (docs/lab/real.md). So both sides are first put in units of the references' own
variation by dimension (`equations.standardize`). Aligning the mean of a middle layer across languages: Liu and Niehues
2025, arXiv 2502.14830.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cctuning.connection import equations

FLOOR = (
    0.01  # of the spread, in units of its root mean square over dimensions: a dimension that hardly varies is noise
)


@dataclass(frozen=True)
class Spans:
    """The positions of each row that are averaged.

    Attributes:
        index: (B, W) int64 flat positions, W of the longest span; a shorter one repeats its first.
        weight: (B, W) fp32, 0 at repeated positions; each row sums to 1.
    """

    index: Tensor
    weight: Tensor

    def take(self, hidden: Tensor) -> Tensor:
        """Activations (B, W, d) at these positions, out of `hidden` (..., d)."""
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.index.flatten()).view(*self.index.shape, -1)


def spans(pool: str, starts: Tensor, ends: Tensor, last: Tensor, width: int) -> Spans:
    """The spans of B rows of `width` positions each.

    Args:
        pool: `mean`, `text_last` or `last`.
        starts, ends: (B,) first position of a prompt's own text and the one after its last.
        last: (B,) the prompt's last position, which may be the template's.

    The first position of a row is left out of a mean over several: it is an attention sink, whose norm would dominate
    (Xiao et al. 2023, arXiv 2309.17453).
    """
    if pool == "mean":
        first = torch.where(ends - starts > 1, starts.clamp(min=1), starts)
        count = (ends - first).clamp(min=1)
    else:
        first = last if pool == "last" else ends - 1
        count = torch.ones_like(first)
    offsets = torch.arange(int(count.max()), device=starts.device)
    inside = offsets < count[:, None]
    rows = torch.arange(len(starts), device=starts.device)
    return Spans((rows * width + first)[:, None] + offsets * inside, inside.float() / count[:, None])


@dataclass(frozen=True)
class Statistics:
    """Mean and spread (standard deviation, with a floor) of a layer's pooled references: (d,) fp32 each."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Statistics:
        """Of references (R, d). A single reference has no spread, and is measured in units of its own size."""
        values = vectors.float()
        mean = values.mean(dim=0)
        return cls.from_moments(mean, values.var(dim=0, correction=0) if len(values) > 1 else mean.square())

    @classmethod
    def from_moments(cls, mean: Tensor, variance: Tensor) -> Statistics:
        """Of a mean and a variance (d,)."""
        return cls(mean, variance.sqrt().clamp(min=FLOOR * float(variance.mean().sqrt()) + 1e-12))

    def z(self, vectors: Tensor) -> Tensor:
        """Pooled activations (N, d) in units of the references' variation."""
        return equations.standardize(vectors, self.mean, self.spread)


@dataclass(frozen=True)
class Offered:
    """What one layer's rows are aligned to in one pass.

    Attributes:
        target: (B, d) each row's reference; standardised but for `relative`.
        others: (K, d) unit vectors of the references to tell it from, standardised; None unless `contrastive`.
        same: (B, K) bool, where one of them is the row's own.
    """

    target: Tensor
    others: Tensor | None = None
    same: Tensor | None = None


def offered(
    loss: str, vectors: Tensor, which: Tensor, statistics: Statistics | None, others: Tensor | None = None
) -> Offered:
    """
    Args:
        loss: `contrastive`, `standardized` or `relative`.
        vectors: (R, d) distinct references. which: (B,) the reference of each row.
        statistics: of the layer; None for `relative`.
        others: (K,) the references that rows are compared with; None: all. The same for all rows, so that a row's
            error does not depend on the rows beside it.
    """
    if loss == "relative" or statistics is None:
        return Offered(vectors[which].float())
    z = statistics.z(vectors)
    if loss == "standardized":
        return Offered(z[which])
    if others is None:
        others = torch.arange(len(z), device=z.device)
    return Offered(z[which], torch.nn.functional.normalize(z[others], dim=-1), which[:, None] == others)


def error(loss: str, pooled: Tensor, offer: Offered, statistics: Statistics | None, temperature: float) -> Tensor:
    """The error (B,) of rows whose pooled activations are `pooled` (B, d); see `equations`."""
    if loss == "relative" or statistics is None:
        return equations.relative_error(pooled, offer.target)
    z = statistics.z(pooled)
    if loss == "standardized":
        return equations.standardized_error(z, offer.target)
    assert offer.others is not None and offer.same is not None
    return equations.contrastive_error(z, offer.target, offer.others, offer.same, temperature)
