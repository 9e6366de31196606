"""The demo's world, the one of 22 languages, base, scoring and the demo itself, at a size that takes seconds."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.cli.demo import report
from cctuning.demo import steps as demo
from cctuning.demo.base import BaseConfig, build_base, build_tokenizer, encode, new_model, train
from cctuning.demo.cldr import LANGUAGES, build_world
from cctuning.demo.scoring import wilson
from cctuning.demo.worlds import ENGLISH, majority, rows

SMALL = BaseConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, english_steps=30, joint_steps=10)


@pytest.fixture(scope="module")
def world():
    return build_world(languages=("en", "ru", "th"), limit=80)


def test_facts_are_split_once_and_the_same_in_every_language(world):
    facts = [fact for split in world.splits.values() for fact in split]
    assert len(facts) == len(set(facts)) == 80
    for split in ("sft", "dev", "test"):
        kept = [f"{fact.relation} {fact.subject}" for fact in world.splits[split]]
        for lang in world.languages:
            assert [item.key for item in world.items(lang, split)] == kept


def test_answers_are_never_spelled_as_in_english(world):
    for fact in world.facts:
        for lang in world.languages:
            if lang != ENGLISH:
                assert world.answer(fact, lang) != world.answer(fact, ENGLISH)


def test_training_rows_hold_no_test_fact_and_no_leak(world):
    training = rows(world, "sft")
    assert {row["lang"] for row in training} == set(world.languages)
    asked = {row["prompt"] for row in training}
    for lang in world.languages:
        for split in ("dev", "test"):
            assert not asked & {item.prompt for item in world.items(lang, split)}
    for row in training:
        assert row["response"].strip() not in row["prompt_en"] or row["lang"] == ENGLISH


def test_full_world_is_large_enough_and_many_scripted():
    full = build_world()
    assert len(full.languages) >= 7 and len(full.splits["test"]) >= 150
    assert full.splits == build_world().splits
    assert full.splits != build_world(seed=1).splits


@pytest.fixture(scope="module")
def world_of_22():
    return build_world(LANGUAGES)


def test_22_languages_share_most_facts_in_tiers_of_seven(world_of_22):
    seven = build_world()
    assert len(world_of_22.languages) == 22 and list(world_of_22.languages)[:7] == list(seven.languages)
    assert set(world_of_22.facts) <= set(seven.facts) and len(world_of_22.facts) > 0.9 * len(seven.facts)
    tiers = Counter(language.tier for language in world_of_22.languages.values())
    assert tiers == {"reference": 1, "high": 7, "mid": 7, "low": 7}


def test_no_two_of_22_languages_share_a_script(world_of_22):
    owners = {}
    for lang in world_of_22.languages:
        letters = {letter for word in world_of_22.vocabulary(lang) for letter in word if letter.isalpha()}
        scripts = {unicodedata.name(letter).split()[0] for letter in letters}
        for script in scripts - (set() if lang == ENGLISH else {"LATIN"}):  # but for abbreviations, such as CFA
            owners.setdefault(script, []).append(lang)
    assert {script: langs for script, langs in owners.items() if len(langs) > 1} == {}
    assert {lang for langs in owners.values() for lang in langs} == set(LANGUAGES)


def test_templates_are_made_of_the_glossary_and_glosses_of_english():
    english = set(LANGUAGES[ENGLISH].glossary)
    for language in LANGUAGES.values():
        assert set(language.glossary.values()) <= english | {""}
        lines = [*language.questions.values(), *language.statements.values(), *language.kinds]
        unused = [word for word in language.glossary if not any(word in line for line in lines)]
        assert unused in ([], [":"])  # the colon of dictionary entries


def test_lines_of_22_languages_are_cut_into_their_own_words_and_whole_names(world_of_22):
    tokenizer = build_tokenizer(world_of_22)
    for lang in world_of_22.languages:
        own = {*world_of_22.vocabulary(lang), *":?."}
        for fact in world_of_22.facts[::20]:
            names = {world_of_22.subject(fact, lang), world_of_22.answer(fact, lang)}
            asked = world_of_22.prompt(fact, lang) + " " + world_of_22.answer(fact, lang)
            for line in (asked, world_of_22.statement(fact, lang)):
                assert names <= set(tokenizer.tokenize(line)) <= own


def test_code_switched_word_lists_translate_each_name_and_tell_nothing(world):
    english = world.entries(ENGLISH)
    for lang in ("ru", "th"):
        lines = world.switched_list(lang, 0, versions=2)
        assert len(lines) == 2 * len(english) and 0.3 < sum(map(english.__contains__, lines)) / len(lines) < 0.7
        meant = dict(zip(world.entries(lang), english, strict=True))
        names = {name.split(": ")[1]: gloss for name, gloss in meant.items()} | {
            gloss.split(": ")[1]: gloss for gloss in english
        }
        for line, entry in zip(lines, english * 2, strict=True):
            assert line.split(": ")[0] == entry.split(": ")[0] and names[line.split(": ")[1]] == entry


def test_names_spelled_alike_in_two_languages_are_refused(monkeypatch):
    monkeypatch.setitem(LANGUAGES, "uk", replace(LANGUAGES["ru"], code="uk"))
    with pytest.raises(ValueError, match="spelled alike in two languages"):
        build_world(("ru", "uk"))


def test_every_line_of_the_world_is_in_the_tokenizer(world):
    tokenizer = build_tokenizer(world)
    for lang in world.languages:
        for fact in world.facts:
            text = world.prompt(fact, lang) + " " + world.answer(fact, lang)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids[-1:]).strip() == world.answer(fact, lang)


def test_base_is_cached_by_content_and_a_plain_checkpoint(world, tmp_path):
    place = build_base(world, tmp_path, SMALL, progress=False)
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    assert build_base(world, tmp_path, SMALL, progress=False) == place
    assert (place / "model.safetensors").stat().st_mtime_ns == stamp
    other = build_base(world, tmp_path, BaseConfig(**{**SMALL.__dict__, "joint_steps": 11}), progress=False)
    assert other != place
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    assert model.config.vocab_size == len(tokenizer)
    again = build_base(world, tmp_path / "elsewhere", SMALL, progress=False)
    for one, two in zip(model.parameters(), AutoModelForCausalLM.from_pretrained(again).parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_batch_in_parts_is_the_same_step(world):
    """With less padding; `parts=1` is what bases have been made with."""
    tokenizer = build_tokenizer(world)
    pools = [
        encode([*world.text(lang, 0.3, 0), *world.parallel_text("ru", 0.3, 0)], tokenizer) for lang in ("en", "ru")
    ]
    trained = []
    for parts in (1, 2, 3):
        model = new_model(tokenizer, SMALL, len(tokenizer))
        trained.append((train(model, pools, 3, 12, 1e-3, 0, "", False, parts), model.state_dict()))
    for loss, weights in trained[1:]:
        assert loss == pytest.approx(trained[0][0], rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, trained[0][1][name], rtol=1e-4, atol=1e-5)


def test_intervals_by_hand():
    share = wilson([True] * 8 + [False] * 2)
    assert (
        share.value == 0.8
        and share.low == pytest.approx(0.4902, abs=1e-3)
        and share.high == pytest.approx(0.9433, abs=1e-3)
    )
    assert wilson([]).items == 0


def test_majority_floor_is_what_a_constant_answer_gets(world):
    flags = majority(world)
    assert len(flags) == len(world.splits["test"])
    assert 0 <= sum(flags) < len(flags)


def test_demo_end_to_end(tmp_path, monkeypatch, capsys):
    """From nothing to the table, at toy size: every artefact it names is there, and a second run keeps the runs."""
    for recipe in demo.RECIPES.values():
        monkeypatch.setitem(recipe, "num_train_epochs", 1)
    tiny = {"base": SMALL, "limit": 60}
    results = demo.run_demo(tmp_path / "demo", tmp_path / "cache", **tiny)
    printed = capsys.readouterr().out
    assert results["fold_largest_relative_logit_difference"] < 1e-5
    assert "mean but English" in printed and "majority floor" in printed and "not evidence" in printed
    for name in ("vanilla", "align", "cc", "cc-folded", "data/train.jsonl", "results.json"):
        assert (tmp_path / "demo" / name).exists()
    assert (
        json.loads((tmp_path / "demo" / "results.json").read_text())["languages"].keys() == results["languages"].keys()
    )
    page = report(tmp_path / "demo").read_text()
    assert "cc against vanilla on own rows" in page and "Where English is borrowed" in page
    stamp = (tmp_path / "demo" / "cc" / "run.json").stat().st_mtime_ns
    assert demo.run_demo(tmp_path / "demo", tmp_path / "cache", **tiny)["languages"] == results["languages"]
    assert (tmp_path / "demo" / "cc" / "run.json").stat().st_mtime_ns == stamp
