"""`cctuning pair`: what a person types, from flags alone or from a recipe, and what they read when it is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cctuning.cli import main
from cctuning.cli.options import parse
from cctuning.cli.pair import sources_of
from cctuning.data import load_parallel
from cctuning.pairing.options import Checks, PairOptions
from tests.cli.world import done, records, refused, run_json, write_model, write_recipe
from tests.pairing.world import ENGLISH, SWAHILI, ids, lines, paired, write

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "pair").glob("*.yaml"))


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", [{k: v for k, v in row.items() if k != "lang"} for row in SWAHILI])


@pytest.fixture
def english(tmp_path):
    return write(tmp_path / "english.jsonl", ENGLISH)


def test_join_from_flags(tmp_path, rows, english, capsys):
    done("pair", rows, "--lang", "sw", "--join", english, "--key", "id", "--output", tmp_path / "o")
    said = capsys.readouterr().out
    assert "rows:     4 (sw 4) with 4 distinct parallels" in said and f"--data {tmp_path}/o/rows.jsonl" in said
    assert ids(lines(tmp_path / "o" / "rows.jsonl")) == [("sw", 1), ("sw", 2), ("sw", 3), ("sw", 4)]


def test_two_plain_files_from_flags(tmp_path):
    for name, side in (("t.en", ENGLISH), ("t.sw", SWAHILI)):
        (tmp_path / name).write_text("".join(row["prompt"] + "\n" for row in side), encoding="utf-8")
    flags = ["--way", "parallel", "--lang", "sw"]
    done("pair", tmp_path / "t.en", tmp_path / "t.sw", *flags, "--output", tmp_path / "o")
    made = lines(tmp_path / "o" / "rows.jsonl")
    assert [(row["prompt"], row["prompt_en"]) for row in made] == [(r["prompt"], r["prompt_en"]) for r in paired()]


def test_parallel_text_is_told_from_rows(tmp_path, capsys):
    """A TSV with a header, a directory, columns named after languages and rows with prompts, in one command."""
    pairs = [(row["prompt"], row["prompt_en"]) for row in paired()]
    (tmp_path / "a.en-sw.tsv").write_text("source\ttarget\n" + f"{pairs[0][1]}\t{pairs[0][0]}\n" * 2, encoding="utf-8")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.sw").write_text(f"{pairs[1][0]}\n", encoding="utf-8")
    (tmp_path / "d" / "t.en").write_text(f"{pairs[1][1]}\n", encoding="utf-8")
    write(tmp_path / "c.jsonl", [{"sw": pairs[2][0], "en": pairs[2][1]}])
    write(tmp_path / "r.jsonl", [{"prompt": pairs[3][0], "prompt_en": pairs[3][1], "lang": "sw", "response": "4"}])
    done("pair", *(tmp_path / n for n in ("a.en-sw.tsv", "d", "c.jsonl", "r.jsonl")), "--output", tmp_path / "o")
    assert {(r["prompt"], r["prompt_en"]) for r in lines(tmp_path / "o" / "rows.jsonl")} == set(pairs)
    said = capsys.readouterr().out
    assert "rejected: 1 (duplicate 1)" in said and "is read as a header, not as a pair: source, target" in said


def test_a_row_counts_once_for_each_reason(tmp_path, capsys):
    """Both sides of swapped pairs are in a wrong language; what is wrong is in the error if nothing is left."""
    swapped = [{"text": row["prompt_en"], "text_en": row["prompt"], "lang": "sw"} for row in paired()]
    write(tmp_path / "s.jsonl", swapped)
    said = refused(capsys, "pair", tmp_path / "s.jsonl", "--output", tmp_path / "o")
    assert "no row is left (language 4); the first: " in said and "is in en, not sw" in said


def test_a_recipe_mixes_ways_and_flags_override_it(tmp_path, rows, english, capsys):
    pairs = [{"lang": "sw", "text": "Paka analala kwenye kiti.", "text_en": "The cat is asleep on the chair."}]
    sources = [
        {"path": rows, "way": "join", "english": {"path": english}, "lang": "sw", "licence": "CC BY 4.0"},
        {"path": write(tmp_path / "p.jsonl", pairs), "way": "parallel"},
    ]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"sources": sources, "check_length": 4.0}), encoding="utf-8")
    done("pair", "--config", recipe, "--output", tmp_path / "o", "--check_length", 6)
    card = json.loads((tmp_path / "o" / "card.json").read_text(encoding="utf-8"))
    assert card["rows"] == 5 and card["without_response"] == 1 and card["checks"]["check_length"] == 6
    assert [source["way"] for source in card["sources"]] == ["join", "parallel"]
    assert "CC BY 4.0" in (tmp_path / "o" / "card.md").read_text(encoding="utf-8")


def test_what_is_made_feeds_train_unchanged(tmp_path, capsys):
    """On a tiny model and its tongue, which no checks know."""
    source = [{**row, "id": n} for n, row in enumerate(records())]
    path = write(tmp_path / "rows.jsonl", source)
    off = [f"--check_{name}=0" for name in ("language", "script", "copy", "length", "ending")]
    done("pair", path, "--output", tmp_path / "o", "--check_duplicates", "false", *off)
    model = write_model(tmp_path / "model")
    recipe = write_recipe(tmp_path / "r.yaml", model=str(model), data=[str(tmp_path / "o" / "rows.jsonl")])
    done("train", "--config", recipe, "--output_dir", tmp_path / "run", "--max_steps", 2)
    assert run_json(tmp_path / "run")["data"]["rows"] == len(lines(tmp_path / "o" / "rows.jsonl")) == 24


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_exists(recipe):
    options, _ = parse("cctuning pair", "", (PairOptions, Checks), ["--config", str(recipe)])
    assert sources_of(options)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--lang", "sw"], "--output: missing"),
        (["--output", "{tmp}/o", "--way", "jion"], "'jion'"),
        (["--output", "{tmp}/o", "--lang", "Klingonisch"], "unknown language 'Klingonisch'"),
        (["--output", "{tmp}/o", "--way", "join"], "english: missing"),
        (["--output", "{tmp}/o", "--translate", "chatt", "--lang", "sw"], "Did you mean 'chat'"),
        (["--output", "{tmp}/o", "--translate", "chat", "model"], "expected OPTION=VALUE"),
        (["--output", "{tmp}/o", "--join", "x", "--translate", "chat"], "exclude each other"),
        (["--output", "{tmp}/o", "--check_script", "2"], "check_script: expected at least 0 and at most 1"),
        (["--output", "{tmp}/o", "--lang", "sw", "--join", "{tmp}/absent.jsonl"], "no such file"),
        (["--output", "{tmp}/o", "--lang", "sw", "--against", "{tmp}/absent.jsonl"], "no such file"),
        (["--output", "{tmp}/o"], "no row is left (row 4)"),  # neither language nor parallel
        (["--output", "{tmp}/o", "--lnag", "sw"], "Did you mean 'lang'"),
    ],
)
def test_mistakes_are_one_line(flags, says, tmp_path, rows, capsys):
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    assert says in refused(capsys, "pair", rows, *flags)


def test_a_function_that_raises_is_told_in_one_line(tmp_path, rows, capsys, monkeypatch):
    (tmp_path / "mine_that_raises.py").write_text("def f(texts, source, target):\n    return texts[0]['id']\n")
    monkeypatch.chdir(tmp_path)
    flags = ["--lang", "sw", "--cache_dir", tmp_path / "cache", "--output", tmp_path / "o"]
    said = refused(capsys, "pair", rows, *flags, "--translate", "function", "function=mine_that_raises:f")
    assert "function mine_that_raises:f: raised TypeError (" in said and "at mine_that_raises.py:2 for" in said
    assert repr(SWAHILI[0]["prompt"]) in said


def test_mistakes_of_recipes_are_one_line(tmp_path, rows, capsys):
    recipe = tmp_path / "r.yaml"
    for source, says in (
        ({"path": rows, "wya": "given"}, "unknown key 'wya'"),
        ({"path": rows}, "way: missing"),
        ({"path": rows, "way": "given", "lang": False}, "put it in quotes"),
        ({"path": rows, "way": "given", "columns": {"promt": "x"}}, "Did you mean 'prompt'"),
        ({"path": rows, "way": "translation"}, "into: missing"),
        ({"path": rows, "way": "given", "english": "e.jsonl"}, "goes with join or parallel"),
        ({"path": rows, "way": "given", "where": {"no such": 1}}, "where: no column 'no such'"),
    ):
        recipe.write_text(yaml.safe_dump({"sources": [source]}), encoding="utf-8")
        assert says in refused(capsys, "pair", "--config", recipe, "--output", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(shutil.which("apertium") is None, reason="needs apertium and apertium-eng-spa")
def test_text_of_a_language_alone_becomes_parallel_text(tmp_path, capsys, monkeypatch):
    """A real translator from rows without answers to parallel text that training reads."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    texts = ["Los niños juegan al fútbol fuera de su escuela.", "El médico dijo que bebamos agua cada día.\nY leche."]
    rows, output = tmp_path / "es.jsonl", tmp_path / "pairs"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    engine = ["--translate", "function", "function=apertium_translator:translate"]
    assert main(["pair", str(rows), "--lang", "es", *engine, "--output", str(output)]) == 0
    assert f"cctuning align MODEL --config pack --parallel {output}/rows.jsonl" in capsys.readouterr().out
    pairs, _ = load_parallel([str(output / "rows.jsonl")])
    assert pairs["text"] == texts and set(pairs["lang"]) == {"es"}
    assert "football" in pairs["reference"][0] and "water" in pairs["reference"][1]
