"""`train --help` in groups, and the recipes and accelerate configurations that come with the package."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cctuning import CCConfig, ConnectionConfig
from cctuning.cli import main
from cctuning.cli.recipes import accelerate_configs, recipes
from cctuning.training.options import RunOptions
from tests.cli.world import records, refused, run_json, write_jsonl, write_model

OPTIONS = {option.name for kind in (RunOptions, ConnectionConfig, CCConfig) for option in fields(kind) if option.init}


def said(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["train", *argv])
    assert left.value.code == 0
    return capsys.readouterr().out


def shown(text: str) -> list[str]:
    return [line.split()[0][2:] for line in text.splitlines() if line.startswith("  --")]


def test_ours_come_first_and_the_libraries_when_asked_for(capsys):
    short, whole = said(capsys, "--help"), said(capsys, "--help", "all")
    assert sorted(shown(whole)) == sorted(OPTIONS), "each option once"
    assert {"model", "data", "connection", "transform_rank", "lora_rank", "learning_rate"} <= set(shown(short))
    assert len(shown(short)) < len(shown(whole)) / 2 and "torch_compile" not in shown(short)
    connection = said(capsys, "--help", "connection")
    assert set(shown(connection)) == {option.name for option in fields(ConnectionConfig)}
    for text in (short, whole):
        for option in re.split(r"\n  --", " ".join(text.partition("\n  --")[1:]))[1:]:
            assert option.count("Default:") + ("nset: " in " ".join(option.split())) == 1, option
    assert "Did you mean 'connection'?" in refused(capsys, "train", "--help", "conection")


def test_recipes_are_listed_printed_and_run_by_name(tmp_path, capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in [*recipes(), *accelerate_configs()])
    assert main(["recipes", "cc"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(recipes()["cc"].read_text())
    base, data = write_model(tmp_path / "base"), write_jsonl(tmp_path / "rows.jsonl", records())
    small = ["--max_steps", "1", "--use_cpu", "true", "--dtype", "float32", "--bf16", "false", "--report_to", "none"]
    run = tmp_path / "run"
    argv = ["train", "--config", "cc", "--model", str(base), "--data", str(data), "--output_dir", str(run), *small]
    assert main([*argv, "--max_length", "100"]) == 0
    assert run_json(run)["status"] == "finished"


def test_a_file_wins_over_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("cc").write_text("nonsense: 1\n")
    assert "unknown key 'nonsense'" in refused(capsys, "train", "--config", "cc")
    assert "Did you mean 'vanilla'?" in refused(capsys, "train", "--config", "vanila")
    for argv in (("train", "--accelerate_config", "dpp", "--num_processes", "2"), ("recipes", "dpp")):
        assert "Did you mean 'ddp'?" in refused(capsys, *argv)
