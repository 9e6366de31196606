"""Scoring held-out questions: greedy exact match per item, and what may be said about it with so few items.

Every figure is a mean over some two hundred yes/no items, so each is given with a 95 % interval: Wilson's for a share,
and for a difference of two models the paired bootstrap of `cctuning.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A share of `items` right, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


def wilson(flags: Sequence[bool]) -> Share:
    """Share of true flags with Wilson's 95 % interval, which stays inside [0, 1] and is honest at 0 and 1."""
    n = len(flags)
    if not n:
        return Share(math.nan, math.nan, math.nan, 0)
    z, p = 1.959964, sum(flags) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), n)
