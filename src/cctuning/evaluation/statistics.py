"""Intervals and significance tests for two systems on the same items.

All are functions of numpy arrays, and the same seed gives the same figures. Draws are made in chunks to bound memory;
equal items are counted instead of drawn one by one, which does not change the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EXACT_UP_TO = 16  # non-zero differences, with 65,536 sign patterns; patterns of more are drawn
_CHUNK = 2**21  # numbers in memory
_FEW = 8  # mean occurrences of a value from which counting equal items is faster


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, over `n` items, clusters or seeds."""

    value: float
    low: float
    high: float
    n: int


def paired_bootstrap(a: ArrayLike, b: ArrayLike, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean of b - a over items with the bootstrap's 95 % percentile interval.

    Source: Efron and Tibshirani 1993, chapter 13; Koehn 2004 for its paired use.

    Args:
        a, b: [items], the two systems' values on the same items in the same order.

    Raises:
        ValueError: shapes differ, no items, a value that is not finite, or draws < 1.
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"a, b: expected the same items in both, got {first.size} and {second.size}")
    return clustered_bootstrap([(second - first)[:, None]], draws, seed)


def clustered_bootstrap(groups: Sequence[ArrayLike], draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean over all columns' means, with a 95 % percentile interval from drawing whole rows.

    A row is one question in several languages: its columns are not independent, so they are drawn together. Groups
    (benchmarks) are drawn independently. Every column has the same weight, whatever its number of items.

    Args:
        groups: of [items, languages] differences; NaN where a language lacks the item.

    Raises:
        ValueError: nothing to average, a column without a number, an infinity, or draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    matrices = [_matrix(group) for group in groups]
    if not matrices:
        raise ValueError("groups: nothing to average")
    rng = np.random.default_rng(seed)
    columns = sum(matrix.shape[1] for matrix in matrices)
    total, point = np.zeros(draws), 0.0
    for matrix in matrices:
        point += float(np.nanmean(matrix, axis=0).sum())
        present = ~np.isnan(matrix)
        rows, times = np.unique(
            np.hstack([np.where(present, matrix, 0.0), present.astype(np.float64)]), axis=0, return_counts=True
        )
        values, there = np.hsplit(rows, 2)
        start = 0
        for counts in _resamples(times, draws, rng):
            drawn = counts @ there
            # A draw without any item of a small language: use the language's own mean.
            means = np.where(drawn > 0, counts @ values / np.maximum(drawn, 1.0), np.nanmean(matrix, axis=0))
            total[start : start + len(counts)] += means.sum(axis=1)
            start += len(counts)
    low, high = np.quantile(total / columns, [0.025, 0.975])
    return Interval(point / columns, float(low), float(high), sum(len(matrix) for matrix in matrices))


def sign_flip_test(differences: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomisation test: under the null each difference's sign is a fair coin.

    Exact where at most `EXACT_UP_TO` differences are not zero; else Monte Carlo, (hits + 1) / (draws + 1), so that no
    p-value is 0 and the test keeps its level. Zeros do not matter: flipping them changes nothing.

    Source: Fisher 1935; Phipson and Smyth 2010 for the "+ 1".

    Args:
        differences: [items]; for averages over clusters, each cluster's contribution to the mean.

    Raises:
        ValueError: no differences, a value that is not finite, or draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    given = _vector(differences, "differences")
    largest = np.abs(given).max()
    if largest == 0:
        return 1.0
    scaled = np.round(given / largest, 12)  # equal up to rounding is equal
    scaled = scaled[scaled != 0]
    sizes = np.abs(scaled)
    bound = abs(scaled.sum()) - 1e-9 * sizes.sum()  # sums in another order may fall short by rounding
    if scaled.size <= EXACT_UP_TO:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(np.abs(sums) >= bound))
    rng = np.random.default_rng(seed)
    kinds, times = np.unique(sizes, return_counts=True)
    counted = len(kinds) * _FEW <= len(sizes)
    width = len(kinds) if counted else len(sizes)
    hits = 0
    for count in _chunks(draws, width):
        if counted:
            sums = (2.0 * rng.binomial(times, 0.5, (count, width)) - times) @ kinds
        else:
            sums = (2.0 * rng.integers(0, 2, (count, width), dtype=np.int8) - 1.0) @ sizes
        hits += int(np.count_nonzero(np.abs(sums) >= bound))
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the order given: the chance of any false alarm stays below alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure". No assumption of independence.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p_values: expected numbers from 0 to 1, got {list(p_values)}")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_interval(values: ArrayLike) -> Interval:
    """Mean with Student's 95 % t interval.

    Args:
        values: [n], n >= 2; for paired seeds, the differences.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    given = _vector(values, "values")
    if given.size < 2:
        raise ValueError("values: expected at least two, one has no spread")
    mean = float(given.mean())
    from scipy.special import stdtrit

    half = float(stdtrit(given.size - 1, 0.975)) * float(given.std(ddof=1)) / math.sqrt(given.size)
    return Interval(mean, mean - half, mean + half, given.size)


def _resamples(times: NDArray[Any], draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each distinct row occurs in a draw, [chunk, rows], `draws` in all; `times`: how often in the data."""
    items, rows = int(times.sum()), len(times)
    if rows * _FEW <= items:
        for count in _chunks(draws, rows):
            yield rng.multinomial(items, times / items, count).astype(np.float64)
        return
    owner = np.repeat(np.arange(rows), times)
    for count in _chunks(draws, items):
        chosen = owner[rng.integers(0, items, (count, items))] + rows * np.arange(count)[:, None]
        yield np.bincount(chosen.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def _chunks(draws: int, width: int) -> Iterator[int]:
    size = max(1, _CHUNK // width)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _vector(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected one or more finite numbers in one dimension, got shape {array.shape}")
    return array


def _matrix(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size or np.isinf(array).any() or np.isnan(array).all(axis=0).any():
        raise ValueError(f"groups: expected [items, languages] with a number in each column, got shape {array.shape}")
    return array
