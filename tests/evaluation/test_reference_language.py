"""A model that borrows from another language than English: its parallels, its means, and comparisons of it."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.cli import main
from cctuning.evaluation.compare import compare
from cctuning.evaluation.run import Options, evaluate
from tests.cli.world import write_model
from tests.conftest import shake
from tests.evaluation.data import data_directory
from tests.evaluation.test_compare import HIGH, LOW, edit, made

FRENCH = [
    {"prompt": "w1 w2", "response": "w3", "lang": "fr"},
    {"prompt": "w4 w5", "response": "w6", "lang": "sw", "prompt_fr": "w1 w2"},
    {"prompt": "w8 w9", "response": "w3", "lang": "en", "prompt_fr": "w2 w1"},
]


@pytest.fixture(scope="module")
def french(tmp_path_factory, model):
    """A model directory with a connection that was trained on French."""
    connected = ConnectedModel.attach(AutoModelForCausalLM.from_pretrained(model), ConnectionConfig("gated"))
    shake(connected)
    connected.reference_language = "fr"
    folder = tmp_path_factory.mktemp("french") / "model"
    write_model(folder, max_position_embeddings=512)
    connected.save_pretrained(folder)
    return folder


def test_the_language_of_training_comes_first_and_is_left_out_of_means(french, tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in FRENCH), encoding="utf-8")
    assert main(["evaluate", str(french), "--rows", str(path), "--output", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["model"]["reference_language"] == "fr" and next(iter(record["tasks"])) == "rows_fr"
    assert "mean without fr" in " ".join(capsys.readouterr().out.split())


def test_a_suite_takes_the_language_of_training(french, tmp_path):
    data = data_directory(tmp_path / "data", {"MGSM": ["en", "fr", "sw"]})
    options = Options(data=str(data), benchmarks=["MGSM"], languages=["sw"], limit=2)
    assert list(evaluate(str(french), tmp_path / "out", options)["tasks"]) == ["mgsm_direct_fr", "mgsm_direct_sw"]


def says(path, language):
    edit(path, lambda record: record["model"].update(reference_language=language))
    return path


def test_compare_keeps_the_language_apart(tmp_path):
    plain, ours = made(tmp_path / "base", LOW, 1), says(made(tmp_path / "ours", HIGH, 2), "sw")
    says(plain, None)
    found = compare([("base", plain), ("ours", ours)], draws=1000)
    first, *_ = found.rows
    mean = next(row for row in found.rows if row.kind == "mean")
    assert first.language == "sw" and mean.languages == 2  # of XCOPA: en and th
    assert "; Swahili +" in found.summary[0] and found.summary[0].endswith("]: better.")
    assert "no language but Swahili; Swahili -" in found.summary[1] and found.summary[1].endswith("]: worse.")
    assert "overall without Swahili" in found.summary[2] and found.settings["reference_languages"] == ["sw"]
    assert not any("reference languages" in note for note in found.notes)


def test_compare_of_different_ones_leaves_out_all(tmp_path, capsys):
    runs = [says(made(tmp_path / name, HIGH, 1 + len(lang)), lang) for name, lang in (("a", "sw"), ("b", "en"))]
    assert main(["compare", *map(str, runs), "--draws", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "note: reference languages differ: a sw, b en; means leave out all of these." in printed
    assert "mean (1)" in printed and "leave out sw, en." in printed
