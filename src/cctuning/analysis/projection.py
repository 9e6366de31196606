"""A flat picture of many activations: the plane in which they spread most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """Points on the principal plane: `points` (n, 2), and `explained` (2,), each axis's share of the variance."""

    points: Tensor
    explained: Tensor


def principal_plane(activations: Tensor) -> Projection:
    """The first two principal components of `activations` (n, d), n at least 2.

    Each axis points where its largest coordinate is positive, so that the picture is the same on every machine. What
    is far apart in the plane is far apart in truth; what is near may still be far in the other dimensions.
    """
    centred = activations.double() - activations.double().mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(centred), 2, dtype=torch.float64)
    points[:, : min(2, len(values))] = (left * values)[:, :2]
    points *= torch.where(points.gather(0, points.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    variance = torch.zeros(2, dtype=torch.float64)
    variance[: min(2, len(values))] = values.square()[:2]
    return Projection(points.float(), (variance / values.square().sum().clamp(min=1e-30)).float())
