"""The controlled worlds: splits, leaks, floors, and what the knobs do."""

from __future__ import annotations

import graphlib
import itertools
from typing import Any

import pytest

from cctuning.demo.base import BaseConfig, build_tokenizer, joint_text
from cctuning.demo.worlds import ENGLISH, chance, majority, others, rows
from experiments.worlds.controlled import ControlledWorld
from experiments.worlds.questions import Sizes
from experiments.worlds.recipes import RECIPES

SMALL = {
    "facts": Sizes(people=40, sft=24, dev=24, test=24, free=16),
    "things": Sizes(things=52, drill=30, sft=24, dev=24, test=24, free=15),
    "sums": Sizes(addends=13, sft=24, dev=24, test=24, free=16),
    "skills": Sizes(skills=40, drill=30, sft=24, dev=24, test=24, free=16),
}


@pytest.fixture(params=list(SMALL), scope="module")
def world(request):
    return ControlledWorld(request.param, 0, SMALL[request.param])


def test_splits_are_disjoint_and_the_same_in_every_language(world):
    keys = [question.key for split in world.splits.values() for question in split]
    assert len(keys) == len(set(keys)) == {"sums": 169, "things": 156}.get(world.kind, 160)
    for split in world.splits:
        for lang in world.languages:
            assert [item.key for item in world.items(lang, split)] == [one.key for one in world.splits[split]]


def test_no_language_reads_what_it_will_be_asked(world):
    """Neither the base's text nor any recipe's rows hold a dev or test question of a language other than English."""
    text = joint_text(world, BaseConfig())
    for lang in others(world):
        asked = {item.prompt for split in ("dev", "test") for item in world.items(lang, split)}
        stated = {world.statement(one, lang) for split in ("dev", "test") for one in world.splits[split]}
        for line in text[lang]:
            assert line not in stated and not any(line.startswith(prompt) for prompt in asked)
        for name, recipe in RECIPES.items():
            for row in recipe.rows(world):
                texts = row["prompt"], row["prompt"].removesuffix(" :"), (row["response"] or "").strip()
                assert not asked.intersection([*texts, row["prompt"] + (row["response"] or "")]), name


def test_code_switched_and_parallel_lines_tell_of_nothing_that_is_asked(world):
    """Said back in English, each is a line of the `text` split: no mixture tells of dev, test, sft or free."""
    told = [line for one in world.splits["text"] for line in _english(world, one)]
    hidden = [
        line
        for name, split in world.splits.items()
        if name != "text"
        for one in split
        for line in _english(world, one)
    ]
    back = {word: gloss for word, by in world.senses().items() for glosses in by.values() for gloss in glosses}
    for lang in others(world):
        lines = world.switched_text(lang, 0.4, 0, versions=3)
        said = {" ".join(back.get(word, word) for word in line.split()) for line in lines}
        assert said <= set(told) and not said & set(hidden)
        assert len(set(lines)) > len(said) and any(word in back for line in lines for word in line.split())
        for line in world.parallel_text(lang, 0.4, 0):
            assert line.split(" : ")[0] in told
        lists = world.switched_list(lang, 0, versions=3)
        named = world.text(ENGLISH, 0.0, 0)[: len(lists) // 3]
        assert {" ".join(back.get(word, word) for word in line.split()) for line in lists} == set(named)
        assert not set(lists) <= set(named) and not set(named) & {*told, *hidden}


def _english(world, question):
    return [
        world.statement(question, ENGLISH),
        f"{world.prompt(question, ENGLISH)} {world.answer(question, ENGLISH)}",
    ]


def test_english_reads_everything(world):
    lines = set(joint_text(world, BaseConfig())[ENGLISH])
    for split in world.splits.values():
        for question in split:
            assert world.statement(question, ENGLISH) in lines


def test_languages_share_no_word_and_answers_differ(world):
    vocabularies = [set(world.vocabulary(lang)) for lang in world.languages]
    assert sum(map(len, vocabularies)) == len(set.union(*vocabularies))
    for lang in others(world):
        for item, english in zip(world.items(lang, "test"), world.items(ENGLISH, "test"), strict=True):
            assert item.answer != english.answer and item.prompt_en == english.prompt


def test_answers_alike_is_a_knob():
    world = ControlledWorld("facts", 0, SMALL["facts"], answers_alike=True)
    for lang in others(world):
        answers = [item.answer for item in world.items(lang, "test")]
        assert answers == [item.answer for item in world.items(ENGLISH, "test")]


def test_every_line_is_in_the_tokenizer(world):
    tokenizer = build_tokenizer(world)
    for lines in joint_text(world, BaseConfig()).values():
        for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]:
            assert tokenizer.unk_token_id not in ids
    longest = max(
        len(tokenizer(" " + item.answer, add_special_tokens=False)["input_ids"])
        for lang in world.languages
        for item in world.items(lang, "test")
    )
    assert longest <= world.answer_tokens


def test_word_order_differs():
    world = ControlledWorld("facts", 0, SMALL["facts"])
    question = world.splits["test"][0]
    english = world.prompt(question, ENGLISH).split()
    back = {word: gloss for word, by in world.senses().items() for glosses in by.values() for gloss in glosses}
    for lang in others(world):
        glossed = [back[word] for word in world.prompt(question, lang).split() if word in back]
        assert sorted(glossed) == sorted(english) and glossed != english


def test_answers_about_things_are_right_and_no_split_tells_of_anothers():
    """Every answer follows from what each thing is said to be; a split's things are its own."""
    world = ControlledWorld("things", 0, SMALL["things"])
    kinds, sizes, owners = {}, {}, {}
    for split, questions in world.splits.items():
        for question in questions:
            name = question.phrases["subj"][0]
            if question.task == "describe":
                kinds[name], sizes[name] = question.answer
            asked = question.phrases["subj"] if question.task == "largest" else [name]
            assert all(owners.setdefault(one, split) == split for one in asked)
    larger: dict[Any, set[Any]] = {size: set() for size in sizes.values()}
    for question in itertools.chain(*world.splits.values(), world._drill):
        (name, *rest), answer = question.phrases["subj"], question.answer[0]
        if question.task == "choose":
            options = rest[1:]
            assert answer == kinds[name] and answer in options and len({*options}) == question.choices == 4
        if question.task == "largest":
            assert answer in (name, *rest) and question.choices == 3
            for one in (name, *rest):
                assert one == answer or sizes[one] != sizes[answer]
                larger[sizes[one]] |= {sizes[answer]} - {sizes[one]}
    list(graphlib.TopologicalSorter(larger).static_order())  # raises where two sizes are each larger than the other


def test_answers_of_skills_are_right():
    world = ControlledWorld("skills", 0, SMALL["skills"])
    for item in world.items(ENGLISH, "test"):
        if item.key == item.task:
            continue
        if item.task == "sum":
            assert _value(item.answer) == sum(int(part) for part in item.key.split("+"))
        if item.task == "larger":
            one, two = map(int, item.key.split(">"))
            assert item.answer == ("yes" if one > two else "no")


def _value(words: str) -> int:
    from experiments.worlds.questions import _NUMBERS, _TENS

    return sum(_NUMBERS.index(w) if w in _NUMBERS else 10 * (2 + _TENS.index(w)) for w in words.split())


def test_floors_by_hand(world):
    """Majority: the SFT split's most frequent answer of each task; chance: drawing answers as often as it has them."""
    taught = [(item.task, item.answer) for item in world.items(ENGLISH, "sft")]
    tested = [(item.task, item.answer) for item in world.items(ENGLISH, "test")]
    expected, drawn = [], 0.0
    for task, answer in tested:
        answers = [one for kind, one in taught if kind == task]
        most = max(dict.fromkeys(answers), key=answers.count)
        expected.append(answer == most)
        drawn += {"largest": 1 / 3, "choose": 1 / 4}.get(task, answers.count(answer) / len(answers))
    assert majority(world) == expected
    assert chance(world) == pytest.approx(drawn / len(tested))


def test_rows_of_recipes(world):
    joint = rows(world, "sft")
    assert len(joint) == 24 * 4 and {row["lang"] for row in joint} == set(world.languages)
    free = RECIPES["cc+free"].rows(world)
    assert sum(row["response"] is None for row in free) == world.sizes.free * 3
    wrong = RECIPES["wrong-english"].rows(world)
    right = {row["prompt"]: row["prompt_en"] for row in joint}
    foreign = [row for row in wrong if row["lang"] != ENGLISH]
    assert sorted(row["prompt_en"] for row in foreign) == sorted(right[row["prompt"]] for row in foreign)
    assert not any(row["prompt_en"] == right[row["prompt"]] for row in foreign)
