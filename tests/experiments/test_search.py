"""Cells, search and table of the made-up worlds: end to end at toy size, and on records whose truth is known."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace

import pytest

from cctuning.demo.base import BaseConfig
from experiments.worlds import cells, recipes, search, table
from experiments.worlds.cells import Cell
from experiments.worlds.cli import main
from experiments.worlds.facts import FactsWorld, Sizes

TINY = BaseConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, english_steps=20, joint_steps=10)
SIZES = Sizes(people=30, sft=16, dev=12, test=12, free=8)


@pytest.fixture
def toy(monkeypatch):
    """A setup that takes seconds, and searches of two settings."""
    made = recipes.Setup("toy", lambda seed: FactsWorld(seed, SIZES), TINY)
    monkeypatch.setitem(recipes.SETUPS, "toy", made)
    for name, recipe in list(recipes.RECIPES.items()):
        short = {"learning_rate": (1e-3, 2e-3), "num_train_epochs": (1,)}
        monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, search=short))
    # Workers are processes of their own, which would not see the toy: run in this one.
    monkeypatch.setattr(search, "run_cells", in_process)


def in_process(wanted, folder, workers=None):
    return [cells.run_cell(cell, folder) for cell in wanted]


def test_recipes_end_to_end_and_again_from_an_empty_cache(toy, tmp_path, capsys):
    names = ["vanilla+replay", "default+replay", "default+free+replay", "cc-start+replay"]
    found = search.experiment("toy", names, [0, 1], [9], tmp_path / "one")
    assert list(found["recipes"]) == ["base", *names]
    assert found["differences"]["cc-start+replay - vanilla+replay"]["x"]["n"] == 2
    assert {"bypass", "live"} <= found["recipes"]["cc-start+replay"].keys()
    tokens = {name: entry["tokens"] for name, entry in found["recipes"].items()}
    assert 0 < tokens["vanilla+replay"] < tokens["default+free+replay"]
    again = search.experiment("toy", names[:1], [0], [9], tmp_path / "two")
    assert again["recipes"][names[0]]["by_base"] == found["recipes"][names[0]]["by_base"][:1]
    output, page = ["--output", str(tmp_path / "one")], tmp_path / "toy.md"
    capsys.readouterr()
    assert main(["table", "toy", *output]) == 0
    printed = capsys.readouterr().out
    assert "| `cc-start+replay` |" in printed
    assert main(["report", "toy", "--page", str(page), *output]) == 0
    text = page.read_text()
    assert printed.strip() in text and text.count("| `vanilla+replay` | learning_rate") == 2
    assert "--bases 0 1 --search_bases 9 --english_slack 1`" in text
    assert main(["report", "toy", "--page", str(page), *output]) == 2 and "exists already" in capsys.readouterr().err


def test_a_cell_is_run_once(toy, tmp_path, monkeypatch):
    cell = Cell("toy", 0, "vanilla+replay", {"learning_rate": 1e-3, "num_train_epochs": 1})
    first = cells.run_cell(cell, tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: pytest.fail("computed twice"))
    assert cells.run_cell(cell, tmp_path) == first
    with pytest.raises(BaseException, match="computed twice"):
        cells.run_cell(replace(cell, settings={"learning_rate": 2e-3, "num_train_epochs": 1}), tmp_path)


def test_a_cell_that_two_recipes_share_is_each_ones_own_record(toy, tmp_path, monkeypatch):
    """The weight searched is the default's: the same run, but the record says which recipe asked for it."""
    monkeypatch.setattr(cells, "build_base", lambda *_, **__: tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: {"tokens": 1, "right": {"student": {"en": "1", "qaa": "01"}}})
    settings = {"learning_rate": 1e-3, "num_train_epochs": 1}
    first = cells.run_cell(Cell("toy", 0, "cc-start+replay", settings), tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: pytest.fail("computed twice"))
    weighed = {**settings, "align_weight": 5.0}
    second = cells.run_cell(Cell("toy", 0, "cc-start-weight+replay", weighed), tmp_path)
    assert second["cell"]["recipe"] == "cc-start-weight+replay" and second["cell"]["settings"] == weighed
    assert {**second, "cell": first["cell"]} == first and first["cell"]["recipe"] == "cc-start+replay"


def record(x: float, english: float, draw: random.Random) -> dict:
    """A record of 400 questions a language, each right with the given chance."""

    def flags(share: float) -> str:
        return "".join("01"[draw.random() < share] for _ in range(400))

    languages = {"en": flags(english), "qaa": flags(x), "qab": flags(x), "qac": flags(x)}
    return {"right": {"student": languages}, "seconds": 1.0, "cell": {"settings": {}}}


@functools.cache
def a_world() -> FactsWorld:
    return FactsWorld(0, Sizes(people=150, sft=16, dev=12, test=400, free=8))


def planted(effect: float, seed: int) -> dict:
    """Six bases of very different ability; `cc-start+replay` is better on each by `effect`."""
    draw = random.Random(seed)
    bases = [draw.uniform(0.2, 0.7) for _ in range(6)]
    results = {
        "vanilla+replay": [record(base, 0.97, draw) for base in bases],
        "cc-start+replay": [record(base + effect, 0.97, draw) for base in bases],
    }
    return table.summarise(a_world(), results)["differences"]["cc-start+replay - vanilla+replay"]


def test_a_planted_effect_is_found():
    found = planted(0.10, 0)
    assert found["x"]["low"] > 0 and found["x"]["wins"] == 6
    assert found["x"]["low"] < 10 < found["x"]["high"]
    assert found["english"]["low"] < 0 < found["english"]["high"]


def test_no_effect_is_not_found_more_often_than_one_time_in_twenty():
    found = [planted(0.0, seed)["x"] for seed in range(200)]
    alarms = sum(one["low"] > 0 or one["high"] < 0 for one in found)
    assert alarms <= 18  # binomial(200, 0.05): more than 18 has a chance of one in a hundred


@pytest.mark.parametrize("kept", [1.0, 0.9])  # 0.9: no setting keeps English, two keep most of it
def test_search_keeps_english(monkeypatch, tmp_path, kept):
    """The best mean wins only among settings that keep English, or that keep most of it."""
    share = {(5e-4, 0.0): (0.8, 0.5), (5e-4, 25.0): (0.6, kept), (1e-3, 0.0): (0.7, 0.6), (1e-3, 25.0): (0.65, kept)}

    def fake(wanted, folder, workers=None):
        made = []
        for cell in wanted:
            key = (cell.settings.get("learning_rate"), cell.settings.get("base_decay"))
            x, english = (0.1, 1.0) if cell.recipe == "base" else share.get(key, (0.1, 0.1))
            made.append(record(x, english, random.Random(0)))
        return made

    monkeypatch.setattr(search, "run_cells", fake)
    name = "vanilla+replay"
    found = search.search("facts", [name], [9], tmp_path, None, 1.0)
    assert (found["chosen"][name]["learning_rate"], found["chosen"][name]["base_decay"]) == (1e-3, 25.0)
    assert len(found["tried"]) == 8
    # With any amount of English to spend, the best mean is taken.
    free = search.search("facts", [name], [9], tmp_path, None, 100.0)["chosen"][name]
    assert (free["learning_rate"], free["base_decay"]) == (5e-4, 0.0)


def test_every_recipe_is_searched_as_hard():
    assert {len(list(recipe.settings())) for recipe in recipes.RECIPES.values()} == {8}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nowhere"], "setup: 'nowhere' is not one of"),
        (["run", "facts", "--recipes", "ccc"], "recipe: 'ccc' is not one of"),
        (["run", "facts", "--bases", "1", "--search_bases", "1"], "report others"),
        (["run", "facts", "--english_slack", "-1"], "english_slack: expected points of English, zero or more"),
        (["run", "cldr", "--recipes", "default+free+replay"], "no questions without answers"),
        (["table", "facts", "--output", "nowhere"], "no such file"),
        (["report", "facts", "--output", "nowhere", "--page", "x.md"], "no such file"),
    ],
)
def test_bad_input_is_one_line(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_dev_only(toy, tmp_path, capsys):
    argv = ["run", "toy", "--recipes", "vanilla+replay", "--dev_only", "--output", str(tmp_path)]
    assert main(argv) == 0
    assert capsys.readouterr().out.count("vanilla+replay") == 2
    assert json.loads((tmp_path / "toy" / "search.json").read_text())["chosen"].keys() == {"vanilla+replay"}


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*recipes.SETUPS, *recipes.RECIPES])
