"""A model with a real skill scores far above the floor through this command: the demo's base in its own world."""

from __future__ import annotations

import json

import pytest

from cctuning.cli import main
from cctuning.demo.base import BaseConfig, build_base
from cctuning.demo.cldr import PlacesWorld, majority
from cctuning.model.loading import load
from experiments.worlds.cells import right
from tests.evaluation.data import write


@pytest.mark.slow
def test_the_demos_base_in_its_own_world(tmp_path):
    world = PlacesWorld()
    base = build_base(world, tmp_path / "cache", BaseConfig(), progress=False)
    expected = {}
    flags = right(load(str(base)), world, "test")
    for lang in ("en", "ru"):
        items = world.items(lang, "test")
        rows = [{"id": i, "prompt": one.prompt, "answer": one.answer.strip()} for i, one in enumerate(items)]
        write(tmp_path / "data" / "paper" / "MKQA" / f"{lang}.jsonl.gz", rows)
        expected[lang] = sum(flags[lang]) / len(items)
    out = tmp_path / "out"
    argv = ["evaluate", str(base), "--suite", "paper", "--data", str(tmp_path / "data"), "--output", str(out)]
    assert main(argv) == 0
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    found = {task["language"]: task["metrics"]["em"]["value"] for task in tasks.values()}
    floor = sum(majority(world)) / len(majority(world))
    assert found["en"] > floor + 0.5
    for lang, value in expected.items():
        assert found[lang] == pytest.approx(value, abs=0.02), lang
