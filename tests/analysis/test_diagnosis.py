"""Diagnosis: planted truths, and the command on a model and rows as a user would have them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cctuning.analysis.diagnosis import FOLDS, predict_reference
from cctuning.cli import main
from cctuning.cli.diagnose import ADVICE, verdict
from tests.cli.world import write_model


def test_a_planted_map_is_found_and_noise_is_not():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 16, generator=draw)
    y = x @ torch.randn(16, 16, generator=draw) + 3.0
    seen = predict_reference(x, y)
    assert seen.explained > 0.99 and seen.found == 1.0 and seen.rows == 120
    apart = predict_reference(x, torch.randn(120, 16, generator=draw))
    assert apart.explained < 0.1 and apart.found < 0.1


def test_half_of_the_variance_is_said_to_be_half():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 8, generator=draw)
    seen = predict_reference(x, x + torch.randn(2000, 8, generator=draw))
    assert seen.explained == pytest.approx(0.5, abs=0.05)


def test_a_common_offset_explains_nothing():
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(80, 8, generator=draw) + 100, torch.randn(80, 8, generator=draw) + 100
    assert predict_reference(x, y).explained < 0.1


def test_too_few_rows():
    with pytest.raises(ValueError, match="expected at least"):
        predict_reference(torch.randn(2 * FOLDS - 1, 4), torch.randn(2 * FOLDS - 1, 4))


@pytest.mark.parametrize(
    ("own", "reference", "explained", "found", "rows", "says"),
    [
        (2.0, 1.0, 0.8, 0.6, 168, "open"),
        (1.0, 1.0, 0.8, 0.6, 168, "gap"),
        (2.0, 1.0, 0.0, 0.01, 168, "apart"),
        (2.0, 1.0, 0.0, 0.1, 128, "open"),
        (2.0, 1.0, 0.21, 0.05, 168, "open"),  # facts-faint
        (2.0, math.nan, 0.8, 0.6, 168, "across"),
        (2.0, 1.0, math.nan, math.nan, 0, "rows"),
        (2.0, 1.0, 0.03, 1 / 8, 8, "rows"),  # chance
        (2.0, 1.0, 0.25, 0.0, 8, "rows"),
        (2.0, 1.0, 0.0, 3 / 30, 30, "rows"),
        (2.0, 1.0, 0.8, 5 / 8, 8, "open"),
        (2.0, 1.0, 0.0, 0.02, 50, "apart"),
    ],
)
def test_verdicts(own, reference, explained, found, rows, says):
    assert verdict({"own": own, "reference": reference, "explained": explained, "found": found}, rows) == says


def test_of_few_rows_noise_is_no_way_across():
    """Where one right prompt of eight is more than `FOUND`."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        seen = predict_reference(torch.randn(8, 16, generator=draw), torch.randn(8, 16, generator=draw))
        figures = {"own": 2.0, "reference": 1.0, "explained": seen.explained, "found": seen.found}
        assert verdict(figures, seen.rows) == "rows"


def test_the_command(tmp_path, capsys):
    base = write_model(tmp_path / "base")
    rows = []
    for i in range(20):
        rows.append({"prompt": f"w{i} w1 w2", "response": f" w{i}", "lang": "en"})
        rows.append({"prompt": f"w{i} w1 w2", "response": f" w{i}", "lang": "qaa", "prompt_en": f"w{i} w1 w2"})
        rows.append({"prompt": f"x{i} x3", "response": None, "lang": "qab", "prompt_en": f"w{i} w1 w2"})
    data, out = tmp_path / "rows.jsonl", tmp_path / "found.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["diagnose", str(base), str(data), "--chat", "no", "--output", str(out)]) == 0
    assert "NaN" not in out.read_text()
    same, silent = json.loads(out.read_text())
    assert same["language"] == "qaa" and same["found"] == 1.0 and same["explained"] > 0.9
    assert same["own"] == pytest.approx(same["reference"], rel=1e-5) and same["verdict"] == "gap"
    assert silent["language"] == "qab" and silent["own"] is None and silent["rows"] == 20
    printed = capsys.readouterr().out
    assert "connection: none (plain fine-tuning)" in printed


@pytest.mark.parametrize("repeated", ["prompt", "prompt_en"])
def test_rows_that_repeat_a_side_do_not_count_again(repeated, tmp_path):
    """Each four times, one after the other, they would lie in all folds."""
    base = write_model(tmp_path / "base")
    once = [{"prompt": f"x{i}", "response": f" x{i}", "lang": "qaa", "prompt_en": f"w{7 * i % 20}"} for i in range(20)]
    other = {"prompt": "prompt_en", "prompt_en": "prompt"}[repeated]
    often = [row | {other: f"{row[other]} x{20 + k}"} if k else row for row in once for k in range(4)]
    found = []
    for rows in (once, often, [row for row in once for _ in range(4)]):
        data, out = tmp_path / "rows.jsonl", tmp_path / "found.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(["diagnose", str(base), str(data), "--chat", "no", "--output", str(out)]) == 0
        found += json.loads(out.read_text())
        out.unlink()
    assert [one["rows"] for one in found] == [20, 80, 80]
    for one in found[1:]:
        assert one["by_layer"]["0"] == pytest.approx(found[0]["by_layer"]["0"], abs=1e-4)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--limit", "0"], "--limit: expected at least 1"),
        (["--output", "nowhere/x.json"], "is not a directory"),
        (["--output", __file__], "exists already; name a new file"),
    ],
)
def test_bad_input(argv, says, tmp_path, capsys):
    base = write_model(tmp_path / "base")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "w1", "response": " w2", "lang": "en"}) + "\n")
    assert main(["diagnose", str(base), str(data), *argv]) == 2
    assert says in capsys.readouterr().err
    assert main(["diagnose", str(base), str(data), "--chat", "no"]) == 2
    assert "no row has a reference prompt" in capsys.readouterr().err


def test_another_reference_language_is_called_by_its_name(tmp_path, capsys):
    base = write_model(tmp_path / "base")
    rows = [{"prompt": f"x{i}", "response": f" x{i}", "lang": "sw", "prompt_fr": f"w{i}"} for i in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["diagnose", str(base), str(data), "--chat", "no", "--reference_language", "fr"]) == 0
    printed = capsys.readouterr().out
    assert "French ┃" in printed and "own, French: loss" in printed and "English" not in printed
    assert "{" not in printed
    assert all("English" not in line.format(name="French") for lines in ADVICE.values() for line in lines)


@pytest.mark.parametrize(
    ("file", "record", "kind"),
    [
        ("run.json", {"status": "finished", "model": "org/base"}, "a run"),
        ("adapter_config.json", {"base_model_name_or_path": "org/base"}, "a LoRA"),
        (
            "connection_config.json",
            {"format": 1, "connection": {}, "base": {"name_or_path": "org/base"}},
            "a model with a trained connection",
        ),
    ],
)
def test_what_training_left_is_refused_and_its_base_named(file, record, kind, tmp_path, capsys):
    made = tmp_path / "made"
    made.mkdir()
    (made / file).write_text(json.dumps(record))
    assert main(["diagnose", str(made), "rows.jsonl"]) == 2
    said = capsys.readouterr().err
    assert f"made: {kind}; diagnose expects the untrained model: use its base, org/base." in said
