"""The demo's world, its base, and the demo itself at a size that takes seconds."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.demo import steps
from cctuning.demo.base import ENGLISH, BaseConfig, build_base, build_tokenizer
from cctuning.demo.cldr import PlacesWorld, majority, replayed, rows
from cctuning.demo.cldr_languages import LANGUAGES

SMALL = BaseConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, english_steps=30, joint_steps=10)


@pytest.fixture(scope="module")
def world():
    return PlacesWorld(("en", "ru", "th"), limit=80)


def test_facts_are_split_once_and_the_same_in_every_language(world):
    facts = [fact for split in world.splits.values() for fact in split]
    assert len(facts) == len(set(facts)) == 80
    for split in ("sft", "dev", "test"):
        kept = [f"{fact.relation} {fact.subject}" for fact in world.splits[split]]
        for lang in world.languages:
            assert [item.key for item in world.items(lang, split)] == kept


def test_answers_are_never_spelled_as_in_english(world):
    for fact in world.facts:
        assert all(world.answer(fact, lang) != world.answer(fact, ENGLISH) for lang in ("ru", "th"))


def test_training_rows_hold_no_test_fact_and_no_leak(world):
    training = replayed(world)
    assert {row["lang"] for row in training} == set(world.languages)
    assert len(training) == len(rows(world, "sft")) + len(world.splits["text"])
    asked = {row["prompt"] for row in training}
    for lang in world.languages:
        for split in ("dev", "test"):
            assert not asked & {item.prompt for item in world.items(lang, split)}
    for row in training:
        assert row["response"].strip() not in row["prompt_en"] or row["lang"] == ENGLISH


def test_full_world():
    full = PlacesWorld()
    assert len(full.languages) == 7 and len(full.splits["test"]) >= 150
    assert full.splits == PlacesWorld().splits
    assert full.splits != PlacesWorld(seed=1).splits
    owners, names = {}, {}
    for (_, _, lang), name in full.names.items():
        assert names.setdefault(name, lang) == lang  # no two languages spell a name alike
    for lang in full.languages:
        letters = {letter for word in full.vocabulary(lang) for letter in word if letter.isalpha()}
        scripts = {unicodedata.name(letter).split()[0] for letter in letters}
        for script in scripts - (set() if lang == ENGLISH else {"LATIN"}):  # abbreviations, such as CFA
            owners.setdefault(script, []).append(lang)
    assert all(len(langs) == 1 for langs in owners.values())
    assert {lang for langs in owners.values() for lang in langs} == set(LANGUAGES)


def test_templates_are_made_of_the_glossary_and_glosses_of_english():
    english = set(LANGUAGES[ENGLISH].glossary)
    for language in LANGUAGES.values():
        assert set(language.glossary.values()) <= english | {""}
        lines = [*language.questions.values(), *language.statements.values(), *language.kinds]
        unused = [word for word in language.glossary if not any(word in line for line in lines)]
        assert unused in ([], [":"])  # the colon of the word list


def test_every_line_of_the_world_is_in_the_tokenizer():
    world = PlacesWorld()
    tokenizer = build_tokenizer(world)
    for lang in world.languages:
        own = {*world.vocabulary(lang), *":?."}
        for fact in world.facts[::20]:
            answer = world.answer(fact, lang)
            asked = tokenizer.tokenize(world.prompt(fact, lang) + " " + answer)
            assert asked[-1] == answer and {*asked, *tokenizer.tokenize(world.statement(fact, lang))} <= own


def test_base_is_cached_by_content_and_a_plain_checkpoint(world, tmp_path):
    place = build_base(world, tmp_path, SMALL, progress=False)
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    assert build_base(world, tmp_path, SMALL, progress=False) == place
    assert (place / "model.safetensors").stat().st_mtime_ns == stamp
    assert build_base(world, tmp_path, replace(SMALL, joint_steps=11), progress=False) != place
    assert not list(tmp_path.glob(".*"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    assert model.config.vocab_size == len(tokenizer)
    again = build_base(world, tmp_path / "elsewhere", SMALL, progress=False)
    for one, two in zip(model.parameters(), AutoModelForCausalLM.from_pretrained(again).parameters(), strict=True):
        assert torch.equal(one, two)


def test_majority_floor_is_what_a_constant_answer_gets(world):
    flags = majority(world)
    assert len(flags) == len(world.splits["test"])
    assert 0 <= sum(flags) < len(flags)


def test_demo_end_to_end(tmp_path, monkeypatch, capsys):
    """From nothing to the table; the page shows the table's figures; a second run keeps the runs."""
    for recipe in steps.RECIPES.values():
        monkeypatch.setitem(recipe, "num_train_epochs", 1)
    tiny = {"config": SMALL, "limit": 60}
    found = steps.run_demo(tmp_path / "demo", tmp_path / "cache", **tiny)
    printed = capsys.readouterr().out
    assert "mean but English" in printed and "no evidence" in printed
    assert "The merged cc, a plain checkpoint: logits" in printed
    for name in ("vanilla", "align", "cc", "cc-merged", "data/train.jsonl", "evaluation/base/results.json"):
        assert (tmp_path / "demo" / name).exists()
    page = (tmp_path / "demo" / "report.html").read_text()
    mean = next(row for row in found.rows if row.system == "align" and row.kind == "mean")
    assert f"{100 * mean.difference:+.1f} ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})" in printed
    assert "Where English activations are used" in page and f"{100 * mean.difference:+.1f}" in page
    records = [tmp_path / "demo" / name / "run.json" for name in steps.RECIPES]
    stamps = [record.stat().st_mtime_ns for record in records]
    assert steps.run_demo(tmp_path / "demo", tmp_path / "cache", **tiny).rows == found.rows
    assert [record.stat().st_mtime_ns for record in records] == stamps
