"""Cells, search and table: at toy size end to end, and on records whose truth is known."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cctuning import UserError
from cctuning.demo.base import BaseConfig
from cctuning.demo.cldr import LANGUAGES, build_world
from experiments.worlds import cells, experiment, grid, recipes, setups, table
from experiments.worlds.cells import Cell
from experiments.worlds.controlled import ControlledWorld
from experiments.worlds.experiment import unfit
from experiments.worlds.questions import Sizes
from experiments.worlds.run import main

TINY = BaseConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, english_steps=20, joint_steps=10)
SIZES = Sizes(people=30, sft=16, dev=12, test=12, free=8)


@pytest.fixture
def toy(monkeypatch):
    """A setup that takes seconds, and searches of two settings."""
    made = setups.Setup("toy", lambda seed: ControlledWorld("facts", seed, SIZES), TINY)
    monkeypatch.setitem(setups.SETUPS, "toy", made)
    for name, recipe in list(recipes.RECIPES.items()):
        short = {"learning_rate": (1e-3, 2e-3), "num_train_epochs": (1,)}
        monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, search=short))
    # Workers are processes of their own, which would not see the toy: run in this one.
    monkeypatch.setattr(grid, "run_cells", in_process)
    monkeypatch.setattr(experiment, "run_cells", in_process)


def in_process(wanted, folder, chosen, workers=None):
    return [cells.run(cell, folder, grid.after(cell, chosen)) for cell in wanted]


def test_every_recipe_end_to_end_and_again_from_an_empty_cache(toy, tmp_path):
    names = ["vanilla", "align", "cc", "cc-no-transform", "transform-only", "cc-adaptive", "cc+free", "wrong-english"]
    found = experiment.experiment("toy", names, [0, 1], [9], tmp_path / "one")
    assert list(found["recipes"]) == ["base", *names]
    assert found["differences"]["cc - vanilla"]["x"]["n"] == 2
    for way in ("bypass", "live"):
        assert way in found["recipes"]["cc"]
    # References are read too; what starts from vanilla has vanilla's tokens in it.
    tokens = {name: entry["tokens"] for name, entry in found["recipes"].items()}
    assert 0 < tokens["vanilla"] < tokens["cc"] < tokens["transform-only"]
    assert found["recipes"]["cc-no-transform"]["x"] >= 0 and "unfit" in found
    page = (tmp_path / "one" / "toy" / "table.md").read_text()
    assert "`cc-adaptive`" in page and "cc - vanilla" in page
    again = experiment.experiment("toy", ["vanilla", "cc"], [0], [9], tmp_path / "two")
    for name in ("vanilla", "cc"):
        assert again["recipes"][name]["by_base"] == found["recipes"][name]["by_base"][:1], name


def test_a_cell_is_run_once(toy, tmp_path, monkeypatch):
    cell = Cell("toy", 0, "vanilla", {"learning_rate": 1e-3, "num_train_epochs": 1})
    first = cells.run(cell, tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: pytest.fail("computed twice"))
    assert cells.run(cell, tmp_path) == first
    with pytest.raises(BaseException, match="computed twice"):
        cells.run(replace(cell, settings={"learning_rate": 2e-3, "num_train_epochs": 1}), tmp_path)


def test_a_cell_that_two_recipes_share_is_each_ones_own_record(toy, tmp_path, monkeypatch):
    """The weight searched is the default's: the same run, but the record says who asks and with what."""
    monkeypatch.setattr(cells, "build_base", lambda *_, **__: tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: {"tokens": 1, "right": {"student": {"en": "1", "qaa": "01"}}})
    settings = {"learning_rate": 1e-3, "num_train_epochs": 1}
    first = cells.run(Cell("toy", 0, "cc-start+replay", settings), tmp_path)
    monkeypatch.setattr(cells, "_compute", lambda *_: pytest.fail("computed twice"))
    weighed = {**settings, "align_weight": 5.0}
    second = cells.run(Cell("toy", 0, "cc-start-weight+replay", weighed), tmp_path)
    assert second["cell"]["recipe"] == "cc-start-weight+replay" and second["cell"]["settings"] == weighed
    assert {**second, "cell": first["cell"]} == first and first["cell"]["recipe"] == "cc-start+replay"


def record(x: float, english: float, draw: random.Random, lang: str = "qaa") -> dict:
    """A record of 400 questions a language, each right with the given chance."""

    def flags(share: float) -> str:
        return "".join("01"[draw.random() < share] for _ in range(400))

    languages = {"en": flags(english), "qaa": flags(x), "qab": flags(x), "qac": flags(x)}
    return {"right": {"student": languages}, "seconds": 1.0, "cell": {"settings": {}}}


@functools.cache
def six_worlds() -> list[ControlledWorld]:
    """With the 400 questions that `record` answers."""
    return [ControlledWorld("facts", base, Sizes(people=150, sft=16, dev=12, test=400, free=8)) for base in range(6)]


def planted(effect: float, seed: int) -> dict:
    """Six bases of very different ability; `cc` is better on each by `effect`."""
    draw = random.Random(seed)
    bases = [draw.uniform(0.2, 0.7) for _ in range(6)]
    results = {
        "base": [record(0.1, 0.99, draw) for _ in bases],
        "vanilla": [record(base, 0.97, draw) for base in bases],
        "cc": [record(base + effect, 0.97, draw) for base in bases],
    }
    return table.summarise(six_worlds(), results)["differences"]["cc - vanilla"]


def test_a_planted_effect_is_found():
    found = planted(0.10, 0)
    assert found["x"]["low"] > 0 and found["x"]["wins"] == 6
    assert found["x"]["low"] < 10 < found["x"]["high"]
    assert set(found["tasks"]) == {"home", "trade", "mentor", "hop"}
    assert all(task["wins"] >= 5 and abs(task["value"] - 10) < 6 for task in found["tasks"].values())
    assert found["english"]["low"] < 0 < found["english"]["high"]


def test_many_languages_are_shown_by_tier(monkeypatch):
    """And a tier's figure is the mean of its languages'."""
    worlds = [build_world(LANGUAGES, 0, 60)] * 2
    draw, count = random.Random(0), len(worlds[0].items("en", "test"))

    def flags() -> str:
        return "".join(draw.choice("01") for _ in range(count))

    made = [{lang: flags() for lang in LANGUAGES} for _ in range(3)]
    records = [{"right": {"student": one}, "seconds": 1.0, "cell": {"settings": {}}} for one in made]
    results = dict(zip(("base", "cc", "vanilla"), ([one, one] for one in records), strict=True))
    summary = table.summarise(worlds, results)
    low = [100 * one.count("1") / count for lang, one in made[1].items() if LANGUAGES[lang].tier == "low"]
    assert f"{sum(low) / len(low):.1f}" in table.markdown("cldr-22", summary)
    assert "| low (7 languages) |" in table.markdown("cldr-22", summary)
    monkeypatch.setattr(table, "COLUMNS", len(LANGUAGES))
    assert "| Sinhala (" in table.markdown("cldr-22", summary)


def test_what_makes_a_comparison_say_little():
    def notes(english: float, plain: float, cc: float) -> str:
        recipes = {"base": {"english": english}, "vanilla+replay": {"x": plain}, "cc+replay": {"x": cc}}
        return "; ".join(unfit({"recipes": recipes, "majority": 6.0, "chance": 5.0}))

    assert notes(99, 40, 50) == ""
    assert "little to carry over" in notes(80, 40, 50)
    assert "leaves no room" in notes(99, 95, 96)
    assert "nothing crosses by any recipe" in notes(99, 7, 8)
    assert "little crosses by itself" in notes(99, 10, 20)


def test_no_effect_is_not_found_more_often_than_one_time_in_twenty():
    found = [planted(0.0, seed)["x"] for seed in range(200)]
    alarms = sum(one["low"] > 0 or one["high"] < 0 for one in found)
    assert alarms <= 18  # binomial(200, 0.05): more than 18 has a chance of one in a hundred


@pytest.mark.parametrize("kept", [1.0, 0.9])  # 0.9: no setting keeps English, two keep most of it
def test_search_keeps_english(monkeypatch, tmp_path, kept):
    """The best mean wins only among settings that keep English, or that keep most of it."""
    share = {(5e-4, 0.0): (0.8, 0.5), (5e-4, 50.0): (0.6, kept), (1e-3, 0.0): (0.7, 0.6), (1e-3, 50.0): (0.65, kept)}

    def fake(wanted, folder, chosen, workers=None):
        made = []
        for cell in wanted:
            key = (cell.settings.get("learning_rate"), cell.settings.get("base_decay"))
            x, english = (0.1, 1.0) if cell.recipe == "base" else share[key]
            made.append(record(x, english, random.Random(0)))
        return made

    monkeypatch.setattr(grid, "run_cells", fake)
    chosen, lines = grid.search("facts", ["vanilla"], [9], tmp_path)
    assert chosen["vanilla"]["learning_rate"] == 1e-3 and chosen["vanilla"]["base_decay"] == 50.0
    assert len(lines) == 8
    # Who may spend any amount of English takes the best mean.
    chosen, _ = grid.search("facts", ["vanilla"], [9], tmp_path, slack=100.0)
    assert chosen["vanilla"]["learning_rate"] == 5e-4 and chosen["vanilla"]["base_decay"] == 0.0


def test_every_recipe_is_searched_as_hard():
    assert {len(list(recipe.settings())) for recipe in recipes.RECIPES.values()} == {8}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nowhere"], "setup: 'nowhere' is not one of"),
        (["run", "facts", "--recipes", "ccc"], "recipe: 'ccc' is not one of"),
        (["run", "facts", "--recipes", "transform-only"], "add vanilla"),
        (["run", "facts", "--bases", "1", "--search_bases", "1"], "report others"),
        (["run", "facts", "--english_slack", "-1"], "english_slack: expected points of English, zero or more"),
        (["table", "facts", "--output", "nowhere"], "no such file"),
        (["report", "facts", "--output", "nowhere", "--page", "x.md"], "no such file"),
        (["run", "facts", "--settings_of", "sums", "--output", "nowhere"], "no such file"),
    ],
)
def test_bad_input_is_one_line(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_table_prints_again(toy, tmp_path, capsys):
    experiment.experiment("toy", ["vanilla", "cc"], [0], [9], tmp_path)
    assert main(["table", "toy", "--output", str(tmp_path)]) == 0
    assert "| `cc` |" in capsys.readouterr().out
    assert json.loads((tmp_path / "toy" / "search.json").read_text())["chosen"].keys() == {"vanilla", "cc"}


def test_page_is_renewed_and_keeps_what_a_person_wrote(toy, tmp_path, capsys):
    page = tmp_path / "docs" / "toy.md"
    experiment.experiment("toy", ["vanilla", "cc"], [0, 1], [9], tmp_path)
    report = ["report", "toy", "--output", str(tmp_path), "--page", str(page), "--date", "2026-01-01"]
    assert main(report) == 0
    text = page.read_text()
    for picture in ("toy-x.svg", "toy-english.svg"):
        assert f"({picture})" in text and ElementTree.fromstring((page.parent / picture).read_text()).tag.endswith(
            "svg"
        )
    assert "2026-01-01" in text and "| cc - vanilla |" in text and text.count("| `vanilla` | learning_rate") == 2
    assert "--search_bases 9 --english_slack 1`" in text  # the command as it was given
    page.write_text(
        text.replace("## Conclusion\n\n(to be written)", "## Conclusion\n\nIt is a toy.\n\n## Later\n\nStill.")
    )
    experiment.experiment("toy", ["vanilla"], [0, 1], [9], tmp_path)
    assert main(report) == 0
    renewed = page.read_text()
    assert renewed.endswith("## Conclusion\n\nIt is a toy.\n\n## Later\n\nStill.\n") and "cc - vanilla" not in renewed
    page.write_text(renewed.replace("## Question\n\n(to be written)", "## Question\n\nWhy?\n\n## Before\n\nThis."))
    for _ in range(2):  # and again from its own writing
        assert main(report) == 0
        assert page.read_text().count("## Question\n\nWhy?\n\n## Before\n\nThis.\n\n## Set-up") == 1
        assert page.read_text().endswith("Still.\n")


def test_a_page_of_results_older_than_the_search_is_refused(toy, tmp_path, capsys, monkeypatch):
    page = tmp_path / "toy.md"
    experiment.experiment("toy", ["vanilla"], [0], [9], tmp_path)
    newer = {"vanilla": {"learning_rate": 5e-3, "num_train_epochs": 1}}
    monkeypatch.setattr(experiment, "search", lambda *_: (newer, []))
    experiment.experiment("toy", ["vanilla"], [0], [9], tmp_path, dev_only=True, slack=2.0)
    capsys.readouterr()
    assert main(["report", "toy", "--output", str(tmp_path), "--page", str(page)]) == 2
    error = capsys.readouterr().err
    assert "does not choose the settings in results.json of vanilla" in error and error.count("\n") == 1
    assert not page.exists()


def test_settings_are_taken_over(toy, tmp_path, monkeypatch, capsys):
    experiment.experiment("toy", ["vanilla", "cc"], [0], [9], tmp_path)
    monkeypatch.setitem(setups.SETUPS, "other", setups.SETUPS["toy"])
    monkeypatch.setattr(experiment, "search", lambda *_: pytest.fail("searched"))
    found = experiment.experiment("other", ["cc"], [1], [9], tmp_path, settings_of="toy")
    assert (
        found["recipes"]["cc"]["settings"]
        == json.loads((tmp_path / "toy" / "search.json").read_text())["chosen"]["cc"]
    )
    taken = ["--settings_of", "toy", "--recipes", "vanilla", "--dev_only", "--output", str(tmp_path)]
    capsys.readouterr()
    assert main(["run", "other", *taken]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("vanilla" in line for line in lines)  # the two settings of `toy`
    with pytest.raises(UserError, match="no settings of align"):
        experiment.experiment("other", ["align"], [1], [9], tmp_path, settings_of="toy")


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*setups.SETUPS, *recipes.RECIPES])
