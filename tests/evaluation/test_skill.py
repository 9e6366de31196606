"""A model with a real skill scores far above the floor: the demo's base in its own world."""

from __future__ import annotations

import json

import pytest

from cctuning.cli import main
from cctuning.demo.world import World, build_base
from cctuning.model.loading import load
from cctuning.serving.answering import Answerer
from tests.evaluation.data import write


@pytest.mark.slow
def test_the_demos_base_in_its_own_world(tmp_path):
    world = World()
    base = build_base(world, tmp_path / "cache", progress=False)
    answerer = Answerer(load(str(base)), chat=False, batch_size=128, max_new_tokens=3)
    expected = {}
    for lang, code in (("en", "en"), ("qaa", "ru")):  # MKQA has real languages only
        rows = world.rows("test", [lang])
        answers = answerer([row["prompt"] for row in rows])
        expected[code] = sum(answer == row["response"] for answer, row in zip(answers, rows, strict=True)) / len(rows)
        items = [{"id": i, "prompt": row["prompt"], "answer": row["response"]} for i, row in enumerate(rows)]
        write(tmp_path / "data" / "paper" / "MKQA" / f"{code}.jsonl.gz", items)
    out = tmp_path / "out"
    argv = ["evaluate", str(base), "--suite", "paper", "--data", str(tmp_path / "data"), "--output", str(out)]
    assert main(argv) == 0
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    found = {task["language"]: task["metrics"]["em"]["value"] for task in tasks.values()}
    assert found["en"] > 0.6
    for code, value in expected.items():
        assert found[code] == pytest.approx(value, abs=0.02), code
