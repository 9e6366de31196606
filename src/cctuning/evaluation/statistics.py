"""Intervals and significance tests for two systems on the same items.

The same seed gives the same figures. Equal items are counted instead of drawn one by one, which does not change the
distribution, and draws are made in chunks to bound memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # scipy.stats takes seconds to import

Array = NDArray[np.float64]

EXACT_UP_TO = 16  # non-zero differences, with 65,536 sign patterns; patterns of more are drawn
_CHUNK = 2**21  # numbers in memory


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, over `n` items, clusters or seeds."""

    value: float
    low: float
    high: float
    n: int


def clustered_bootstrap(groups: Sequence[ArrayLike], draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean over all columns' means, with a 95 % percentile interval from drawing whole rows.

    A row is one question in several languages: its columns are not independent, so they are drawn together. Groups
    (benchmarks) are drawn independently. Every column has the same weight, whatever its number of items.

    Source: Efron and Tibshirani 1993, chapter 13; Koehn 2004 for differences of paired systems.

    Args:
        groups: of [items, languages] differences; NaN where a language lacks the item. No column is all NaN.
    """
    rng = np.random.default_rng(seed)
    matrices = [np.asarray(group, dtype=np.float64) for group in groups]
    columns = sum(matrix.shape[1] for matrix in matrices)
    total, point = np.zeros(draws), 0.0
    for matrix in matrices:
        means = np.nanmean(matrix, axis=0)
        point += float(means.sum())
        distinct, times = np.unique(np.hstack([np.nan_to_num(matrix), ~np.isnan(matrix)]), axis=0, return_counts=True)
        values, there = np.hsplit(distinct, 2)
        for part in np.array_split(total, math.ceil(draws * len(distinct) / _CHUNK)):
            counts = rng.multinomial(len(matrix), times / len(matrix), len(part)).astype(np.float64)
            drawn = counts @ there
            # A draw without any item of a small language: use the language's own mean.
            part += np.where(drawn > 0, counts @ values / np.maximum(drawn, 1.0), means).sum(axis=1)
    low, high = np.quantile(total / columns, [0.025, 0.975])
    return Interval(point / columns, float(low), float(high), sum(len(matrix) for matrix in matrices))


def sign_flip_test(differences: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomisation test: under the null each difference's sign is a fair coin.

    Exact where at most `EXACT_UP_TO` differences are not zero; else Monte Carlo, (hits + 1) / (draws + 1), so that no
    p-value is 0 and the test keeps its level. Zeros do not matter: flipping them changes nothing.

    Source: Fisher 1935; Phipson and Smyth 2010 for the "+ 1".

    Args:
        differences: [items]; for averages over clusters, each cluster's contribution to the mean.
    """
    given = np.asarray(differences, dtype=np.float64)
    largest = np.abs(given).max()
    if largest == 0:
        return 1.0
    scaled = np.round(given / largest, 12)  # equal up to rounding is equal
    sizes, times = np.unique(np.abs(scaled[scaled != 0]), return_counts=True)
    bound = abs(scaled.sum()) - 1e-9 * float(sizes @ times)  # sums in another order may fall short by rounding
    if times.sum() <= EXACT_UP_TO:
        sums = np.zeros(1)
        for size in np.repeat(sizes, times):
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(np.abs(sums) >= bound))
    rng = np.random.default_rng(seed)
    hits = 0
    for part in np.array_split(np.empty(draws), math.ceil(draws * len(sizes) / _CHUNK)):
        sums = (2.0 * rng.binomial(times, 0.5, (len(part), len(sizes))) - times) @ sizes
        hits += int(np.count_nonzero(np.abs(sums) >= bound))
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the order given: the chance of any false alarm stays below alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure". No assumption of independence.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_interval(values: ArrayLike) -> Interval:
    """Mean with Student's 95 % t interval.

    Args:
        values: [n], n >= 2; for paired seeds, the differences.
    """
    given = np.asarray(values, dtype=np.float64)
    mean = float(given.mean())
    half = float(stdtrit(given.size - 1, 0.975)) * float(given.std(ddof=1)) / math.sqrt(given.size)
    return Interval(mean, mean - half, mean + half, given.size)
