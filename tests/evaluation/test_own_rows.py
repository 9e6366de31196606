"""`cctuning evaluate --rows`: a user's own held-out rows, scored, paired and compared."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.cli import main
from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.evaluation.models import Journal
from cctuning.evaluation.run import Options, evaluate, score
from cctuning.evaluation.user_tasks import load_own_rows
from tests.cli.world import write_model
from tests.conftest import shake
from tests.evaluation.data import Stub
from tests.training.toys import tokenizer

ROWS = [
    {"prompt": "w1 w2", "response": "w3", "lang": "en"},
    {"prompt": "w4 w5", "response": " w6 w7", "lang": "sw", "prompt_en": "w1 w2"},
    {"prompt": "w8 w9", "response": "w3", "lang": "sw", "prompt_en": "w2 w1"},
    {"prompt": "w8", "response": None, "lang": "sw", "prompt_en": "w2"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.mark.parametrize("right", [True, False])
def test_gold_answers_get_100_and_others_none(right, rows, tmp_path):
    items, notes = load_own_rows(rows, None)
    assert [(item.language, len(item.task.eval_docs)) for item in items] == [("en", 1), ("sw", 2)]
    assert notes == [f"{rows}: 1 rows without a response are left out."]
    record = {"tasks": {}, "model": {"name": "stub", "fingerprint": ""}, "settings": {"mode": "student"}}
    record |= {"versions": {}, "status": "stopped", "planned": []}
    for item in items:
        lm = Journal(Stub(item.task, right), tmp_path / "journal.jsonl")
        (tmp_path / "samples").mkdir(exist_ok=True)
        score(item, lm, Options(rows=rows), tmp_path, record)
    for task in record["tasks"].values():
        assert {name: figure["value"] for name, figure in task["metrics"].items()} == {"f1": right, "em": right}
    sample = json.loads((tmp_path / "samples" / "rows_sw.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] == "w4 w5" and sample["target"] == "w6 w7"


def test_an_answer_of_several_lines_is_read_whole(tmp_path):
    items, notes = load_own_rows(write(tmp_path / "r.jsonl", [{**ROWS[1], "response": "w8\nw9"}]), ["sw"])
    assert items[0].task.config.generation_kwargs["until"] == []
    assert "no row in English" in notes[0]


@pytest.mark.parametrize(("words", "tokens"), [(3, 32), (100, 125), (900, 1024), (1100, 1024)])
def test_the_longest_response_has_room(words, tokens, tmp_path):
    """In every language, and a model that gives it to the letter gets 100."""
    long = {**ROWS[1], "response": "w6 " * words}
    items, notes = load_own_rows(write(tmp_path / "r.jsonl", [*ROWS[:2], long]), None, encoder=Encoder(tokenizer()))
    given = {item.language: item.task.config.generation_kwargs["max_gen_toks"] for item in items}
    assert given == {"en": 32, "sw": tokens}
    cut = [note for note in notes if "1 of 2 responses in sw are longer than the 1024 tokens" in note]
    assert len(cut) == (words > 1024)


def test_a_language_is_found_under_any_of_its_codes(tmp_path):
    rows = write(tmp_path / "r.jsonl", [{**ROWS[1], "lang": "pt-BR"}, ROWS[0], {**ROWS[1], "lang": "zh-Hant"}])
    for asked, found in (("pt", "pt-BR"), ("pt-BR", "pt-BR"), ("zh", "zh-Hant")):
        assert [item.language for item in load_own_rows(rows, [asked])[0]] == ["en", found]
        assert not any("is taken" in note for note in load_own_rows(rows, [asked])[1]) or asked == "zh"
    items, notes = load_own_rows(rows, ["pt-PT"])
    assert [item.language for item in items] == ["en", "pt-BR"]
    assert notes[0] == f"{rows}: no text in pt-PT; pt-BR is taken."
    with pytest.raises(UserError, match=r"no row of .* is in 'zh-Hans'; it has en, pt-BR, zh-Hant"):
        load_own_rows(rows, ["zh-Hans"])


def test_scored_and_compared(rows, model, tmp_path, capsys):
    made = ConnectedModel.attach(AutoModelForCausalLM.from_pretrained(model), ConnectionConfig("gated"))
    shake(made)
    write_model(tmp_path / "connected", max_position_embeddings=512)
    made.save_pretrained(tmp_path / "connected")
    for name, path in (("plain", model), ("gated", tmp_path / "connected")):
        assert main(["evaluate", str(path), "--rows", rows, "--output", str(tmp_path / name)]) == 0
    record = json.loads((tmp_path / "gated" / "results.json").read_text())
    assert list(record["tasks"]) == ["rows_en", "rows_sw"] and record["settings"]["suite"] == "rows"
    assert main(["compare", f"plain={tmp_path / 'plain'}", f"gated={tmp_path / 'gated'}"]) == 0
    assert "rows" in capsys.readouterr().out


def test_other_rows_do_not_mix_and_bad_ones_are_named(rows, model, tmp_path):
    evaluate(str(model), tmp_path / "out", Options(rows=rows))
    other = write(tmp_path / "other.jsonl", ROWS[:2])
    with pytest.raises(UserError, match="rows_sw was scored on other data"):
        evaluate(str(model), tmp_path / "out", Options(rows=other))
    with pytest.raises(UserError, match="'fr'"):
        load_own_rows(rows, ["fr"])
    with pytest.raises(UserError, match="no row has a response"):
        load_own_rows(write(tmp_path / "silent.jsonl", ROWS[3:]), None)
    turns = [{"role": role, "content": "w1"} for role in ("user", "assistant", "user")]
    with pytest.raises(UserError, match=r"t.jsonl:1: a conversation of 3 turns"):
        load_own_rows(write(tmp_path / "t.jsonl", [{"prompt": turns, "response": "w2", "lang": "en"}]), None)


def test_rows_and_a_suite_exclude_each_other(rows, model, tmp_path, capsys):
    argv = ["evaluate", str(model), "--rows", rows, "--suite", "paper", "--output", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "leave out --suite" in capsys.readouterr().err
