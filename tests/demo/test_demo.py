"""The demo's world, its base, and the demo itself at a size that takes seconds."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.demo import steps
from cctuning.demo.steps import Step
from cctuning.demo.world import ENGLISH, LANGUAGES, UNKNOWN, Size, World, build_base, build_tokenizer

SMALL = Size(people=40, width=32, layers=2, english_steps=30, joint_steps=10)


@pytest.fixture(scope="module")
def world():
    return World(0, SMALL)


def test_facts_are_split_once(world):
    facts = [fact for split in world.splits.values() for fact in split]
    assert len(facts) == len(set(facts)) == 3 * 40
    assert world.splits == World(0, SMALL).splits != World(1, SMALL).splits


def test_languages_share_no_word(world):
    words = [word for words in world.words.values() for word in words.values()]
    assert len(words) == len(set(words))


def test_only_english_reads_the_facts_that_are_asked(world):
    for split in ("sft", "parallel", "test"):
        asked = {row["prompt"] for row in world.rows(split) if row["lang"] != ENGLISH}
        for lang in LANGUAGES:
            read = "\n".join(world.text(lang))
            assert not any(prompt in read for prompt in asked)
        for row in world.rows(split, [ENGLISH]):
            assert f"{row['prompt']} {row['response']}" in world.text(ENGLISH)


def test_training_data_have_no_test_fact(world):
    seen = {row["prompt"] for row in world.rows("sft") + world.rows("text", [ENGLISH])}
    seen |= {pair["text"] for pair in world.pairs("parallel")}
    assert not seen & {row["prompt"] for row in world.rows("test")}


def test_a_word_is_a_token(world):
    tokenizer = build_tokenizer(world)
    for lang in LANGUAGES:
        for line in world.text(lang):
            assert tokenizer.tokenize(line) == line.split() and UNKNOWN not in tokenizer.tokenize(line)


def test_base_is_cached_by_content_and_a_plain_checkpoint(world, tmp_path):
    place = build_base(world, tmp_path, progress=False)
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    assert build_base(world, tmp_path, progress=False) == place
    assert (place / "model.safetensors").stat().st_mtime_ns == stamp
    assert build_base(World(0, replace(SMALL, joint_steps=11)), tmp_path, progress=False) != place
    assert not list(tmp_path.glob(".*"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    assert model.config.vocab_size == len(tokenizer)
    again = build_base(world, tmp_path / "elsewhere", progress=False)
    for one, two in zip(model.parameters(), AutoModelForCausalLM.from_pretrained(again).parameters(), strict=True):
        assert torch.equal(one, two)


def test_demo_end_to_end(tmp_path, monkeypatch, capfd):
    """From nothing to the page; a second call keeps what is there."""
    monkeypatch.setattr(steps, "TRAINING", [*steps.TRAINING, "--max_steps", "3", "--use_cpu", "true"])
    assert steps.run_demo(tmp_path / "demo", tmp_path / "cache", size=SMALL) == 0
    printed = capfd.readouterr().out
    assert "$ cctuning train" in printed and "no evidence" in printed and "checked: loaded again" in printed
    for name in ("plain", "align", "cc", "merged/model.safetensors", "scores/base/results.json", "report.html"):
        assert (tmp_path / "demo" / name).exists()
    stamps = [(tmp_path / "demo" / name / "run.json").stat().st_mtime_ns for name in steps.RUNS]
    assert steps.run_demo(tmp_path / "demo", tmp_path / "cache", size=SMALL) == 0
    assert [(tmp_path / "demo" / name / "run.json").stat().st_mtime_ns for name in steps.RUNS] == stamps
    assert capfd.readouterr().out.count("kept from before") == len(steps.RUNS) + 3


def test_a_step_is_kept_while_its_command_is_the_same(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(steps, "cctuning", lambda command: called.append(command) or 0)
    console, target = Console(file=io.StringIO()), tmp_path / "run"

    def step(*command):
        called.clear()
        assert steps.run_steps(console, tmp_path, [Step("a", target, list(command), ["compare"])]) == 0
        target.mkdir(exist_ok=True)
        return list(called)

    assert step("train", "--seed", "0") == [["train", "--seed", "0"]]
    assert step("train", "--seed", "0") == [["compare"]]
    assert step("train", "--seed", "1") == [["train", "--seed", "1"]]
