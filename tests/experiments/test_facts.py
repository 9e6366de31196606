"""The made-up facts: splits, leaks, words, and the rows of the recipes."""

from __future__ import annotations

import itertools

import pytest

from cctuning.demo.base import ENGLISH, BaseConfig, base_text, build_tokenizer
from cctuning.demo.cldr import PlacesWorld, majority, others, rows
from cctuning.errors import UserError
from experiments.worlds.facts import FactsWorld, Sizes
from experiments.worlds.recipes import RECIPES, mispaired, with_free


@pytest.fixture(scope="module")
def world():
    return FactsWorld(0, Sizes(people=40, sft=24, dev=24, test=24, free=16))


def test_splits_are_disjoint_and_the_same_in_every_language(world):
    keys = [question.key for split in world.splits.values() for question in split]
    assert len(keys) == len(set(keys)) == 160
    for split, lang in itertools.product(world.splits, world.languages):
        assert [item.key for item in world.items(lang, split)] == [one.key for one in world.splits[split]]


def test_no_language_reads_what_it_will_be_asked(world):
    """Neither the base's text nor any recipe's rows hold a dev or test question of a language other than English."""
    text = base_text(world, BaseConfig())
    for lang in others(world):
        asked = {item.prompt for split in ("dev", "test") for item in world.items(lang, split)}
        stated = {world.statement(one, lang) for split in ("dev", "test") for one in world.splits[split]}
        for line in text[lang]:
            assert line not in stated and not any(line.startswith(prompt) for prompt in asked)
        for name, recipe in RECIPES.items():
            assert not asked & {row["prompt"] for row in recipe.rows(world)}, name


def test_english_reads_everything(world):
    lines = set(base_text(world, BaseConfig())[ENGLISH])
    for question in itertools.chain(*world.splits.values()):
        assert world.statement(question, ENGLISH) in lines


def test_languages_share_no_word_and_answers_differ(world):
    vocabularies = [set(world.vocabulary(lang)) for lang in world.languages]
    assert sum(map(len, vocabularies)) == len(set.union(*vocabularies))
    for lang in others(world):
        for item, english in zip(world.items(lang, "test"), world.items(ENGLISH, "test"), strict=True):
            assert item.answer != english.answer and item.prompt_en == english.prompt


def test_every_line_is_in_the_tokenizer(world):
    tokenizer = build_tokenizer(world)
    for lines in base_text(world, BaseConfig()).values():
        for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]:
            assert tokenizer.unk_token_id not in ids
    answers = [" " + item.answer for lang in world.languages for item in world.items(lang, "test")]
    assert max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"])) == world.answer_tokens


def test_word_order_differs(world):
    question = world.splits["test"][0]
    english = world.prompt(question, ENGLISH).split()
    back = {word: gloss for word, by in world.senses().items() for glosses in by.values() for gloss in glosses}
    for lang in others(world):
        glossed = [back[word] for word in world.prompt(question, lang).split() if word in back]
        assert sorted(glossed) == sorted(english) and glossed != english


def test_answers_follow_from_the_facts(world):
    """The trade of a person's mentor is what both facts together say."""
    every = list(itertools.chain(*world.splits.values()))
    of = {(one.task, one.person): one.answer for one in every}
    for one in every:
        if one.task == "hop":
            assert one.answer == of["trade", of["mentor", one.person]]


def test_majority_by_hand(world):
    taught = [(item.task, item.answer) for item in world.items(ENGLISH, "sft")]
    expected = []
    for item in world.items(ENGLISH, "test"):
        answers = [answer for task, answer in taught if task == item.task]
        expected.append(item.answer == max(dict.fromkeys(answers), key=answers.count))
    assert majority(world) == expected


def test_rows_of_recipes(world):
    joint = rows(world, "sft")
    assert len(joint) == 24 * 4 and {row["lang"] for row in joint} == set(world.languages)
    assert sum(row["response"] is None for row in with_free(world)) == 16 * 3
    right = {row["prompt"]: row["prompt_en"] for row in joint}
    foreign = [row for row in mispaired(world) if row["lang"] != ENGLISH]
    assert sorted(row["prompt_en"] for row in foreign) == sorted(right[row["prompt"]] for row in foreign)
    assert not any(row["prompt_en"] == right[row["prompt"]] for row in foreign)


def test_a_world_without_a_free_split():
    with pytest.raises(UserError, match="no questions without answers"):
        with_free(PlacesWorld(("en", "ru"), limit=60))
