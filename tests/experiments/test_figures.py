"""Differences are paired, intervals are over items, choices are made on dev."""

import numpy as np
import pytest

from cctuning.errors import UserError
from experiments.real.figures import Tiers, accuracy, best, difference, flags, spread
from experiments.real.table import Results, seed_table


def record(seed=0, data="d", **test):
    return {"right": {"test": test, "dev": test}, "data": data, "base": "b", "cell": {"seed": seed}}


def test_by_hand():
    one = [record(en="1111", fr="1100", sw="0000"), record(1, en="1111", fr="1000", sw="0000")]
    two = [record(en="1111", fr="1110", sw="0001"), record(1, en="1111", fr="1110", sw="0000")]
    assert accuracy(one, "test", ["fr", "sw"]) == pytest.approx(100 * (0.375 + 0) / 2)
    assert spread(one, "test", ["fr"]) == pytest.approx(np.std([50, 25], ddof=1))
    found = difference(one, two, "test", ["fr", "sw"])
    assert found.value == pytest.approx(100 * ((0.75 - 0.375) + 0.125) / 2)
    assert found.low <= found.value <= found.high and found.n


def test_seeds_are_averaged_and_not_items():
    many = [record(seed, fr="10") for seed in range(5)]
    assert flags(many, "test", ["fr"]).shape == (2, 1)


def test_versions_are_not_pooled():
    with pytest.raises(UserError, match="2 versions"):
        flags([record(fr="1"), record(data="other", fr="1")], "test", ["fr"])


def test_tiers_and_best():
    plain = [record(en="1111", ar="1111", bn="1110", de="1100", el="1000", fr="0000", hi="1111")]
    tiers = Tiers.of(plain)
    assert tiers.low == ("el", "fr") and set(tiers.high) == {"ar", "hi"}
    assert best({"a": [record(en="1", fr="01")], "b": [record(en="0", fr="11")]}) == "b"


def cells(group, recipe="plain", seed=0, rate=1e-4, **test):
    cell = {"base": "toy", "world": "w", "recipe": recipe, "seed": seed, "setting": {"rate": rate}}
    return {**record(seed, **test), "group": group, "cell": cell, "seconds": {"training": 1.0}}


def test_seeds_of_the_setting_that_was_chosen():
    """Seeds of a setting that a later search no longer chooses are left out; options that came later are defaults."""
    older, newer = cells("plain", en="1", fr="01"), cells("plain", rate=5e-5, en="1", fr="11")
    newer["cell"]["setting"]["noise"] = 0.0
    seeds = [cells("plain-seeds", seed=1, en="1", fr="00"), cells("plain-seeds", seed=2, rate=5e-5, en="1", fr="11")]
    results = Results([older, newer, *seeds])
    assert results.chosen("plain") == [newer, seeds[1]] == results.of("plain")
    assert Results([older, seeds[0]]).of("plain") == [older, seeds[0]]  # no search


def test_a_line_for_each_group():
    plan = [cells("plain", seed=n, en="11", fr="01") for n in range(2)]
    plan += [cells("pack", "pack", seed=n, en="11", fr="11") for n in range(2)]
    lines = seed_table(plan, ["plain"]).splitlines()
    assert lines[2].startswith("| plain | 2 | 100.0 | 50.0 ±0.0 | 50.0 |  |  |")
    assert lines[3].startswith("| pack | 2 | 100.0 | 100.0 ±0.0 | 100.0 | +50.0")
