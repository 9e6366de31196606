"""Intervals and tests against known distributions, a worked example and a printed table."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cctuning.evaluation.statistics import clustered_bootstrap, holm, sign_flip_test, t_interval


def paired_bootstrap(a, b, draws=10_000, seed=0):
    return clustered_bootstrap([(b - a)[:, None]], draws, seed)


def answers(rng, items: int, gain: float = 0.0):
    """Two systems' 0/1 values on the same items, the second right more often by `gain`."""
    hard = rng.random(items)
    return (rng.random(items) < 0.3 + 0.4 * hard) * 1.0, (rng.random(items) < 0.3 + 0.4 * hard + gain) * 1.0


def test_bootstrap_interval_covers_the_true_difference_in_about_95_percent():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        a, b = answers(rng, 200, 0.1)
        found = paired_bootstrap(a, b, 1000, seed)
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / 400 <= 0.975


def test_bootstrap_is_seeded_and_agrees_with_the_normal_approximation_on_both_ways_of_drawing():
    rng = np.random.default_rng(1)
    for a, b in (answers(rng, 500), (rng.random(500), rng.random(500))):  # few values; all different
        found = paired_bootstrap(a, b, 10_000, 3)
        assert found == paired_bootstrap(a, b, 10_000, 3)
        half = 1.96 * (b - a).std() / 500**0.5
        assert found.value == pytest.approx((b - a).mean())
        assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
        assert found.n == 500


def test_clusters_are_drawn_whole():
    column = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 300)
    one = clustered_bootstrap([column[:, None]], 4000)
    alike = clustered_bootstrap([np.stack([column] * 5, axis=1)], 4000)
    assert alike.high - alike.low == pytest.approx(one.high - one.low, rel=0.05)  # five copies say no more than one
    apart = clustered_bootstrap([column[:, None], np.random.default_rng(3).permutation(column)[:, None]], 4000)
    assert (apart.high - apart.low) * 2**0.5 == pytest.approx(one.high - one.low, rel=0.05)


def test_columns_weigh_the_same_whatever_their_length():
    matrix = np.full((100, 2), np.nan)
    matrix[:, 0], matrix[:2, 1] = 0.0, 1.0  # the two items of the short one are missing in many draws
    found = clustered_bootstrap([matrix], 2000)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("items", [12, 150])
def test_false_alarms_are_about_5_percent(items: int):
    rng = np.random.default_rng(items)
    ps = np.array([sign_flip_test(rng.normal(size=items), 999, seed) for seed in range(600)])
    assert 0.03 <= np.mean(ps < 0.05) <= 0.07
    assert 0.44 <= np.mean(ps < 0.5) <= 0.56


def test_false_alarms_with_ties_stay_at_or_below_5_percent():
    rng = np.random.default_rng(5)
    ps = [sign_flip_test(np.subtract(*answers(rng, 200)), 999, seed) for seed in range(400)]
    assert 0.015 <= np.mean(np.array(ps) < 0.05) <= 0.07


def test_planted_effect_is_found():
    a, b = answers(np.random.default_rng(6), 500, 0.2)
    assert sign_flip_test(b - a) < 0.001
    assert paired_bootstrap(a, b).low > 0


def test_exact_test_is_the_enumeration_and_the_drawn_one_comes_near():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.2, 0.6])
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=7)]
    assert sign_flip_test([*values, 0, 0]) == np.mean(np.array(sums) >= values.sum() - 1e-9)
    assert sign_flip_test([1.0] * 5) == 2 / 32
    assert sign_flip_test([0.0, 0.0]) == 1.0
    # 30 signs, 21 of one kind: 2 P(Binomial(30, 1/2) >= 21)
    assert sign_flip_test([1e-5] * 21 + [-1e-5] * 9, 100_000) == pytest.approx(0.0428, abs=0.002)
    assert sign_flip_test([1.0] * 200, 999) == 1 / 1000


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_t_interval_against_the_table():
    found = t_interval([1, 2, 3, 4, 5])  # t(0.975, 4) = 2.776; s = 1.5811
    assert (found.value, found.n) == (3.0, 5)
    assert found.high - 3 == pytest.approx(2.776 * 1.5811 / 5**0.5, abs=1e-3)
    assert t_interval([0.0, 2.0]).high - 1 == pytest.approx(12.706, abs=1e-3)
