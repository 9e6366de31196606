"""What README.md shows runs as it stands, but for the model's name."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cctuning.cli import main
from tests.docs.small import NOTEBOOKS, small_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the files that the README names, and the model."""
    for name in ("english", "pairs", "held_out"):
        shutil.copy(NOTEBOOKS / "data" / f"{name}.jsonl", tmp_path)
    small_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_is_short():
    assert len(README.splitlines()) < 120


def test_the_python_runs(here):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    exec(compile(code.replace(MODEL, "model"), "README.md", "exec"), {})


def test_the_commands_run(here, capsys):
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("cctuning ")]
    assert [words[1] for words in commands] == ["diagnose", "train", "generate", "export", "train", "evaluate"]
    for words in commands:
        words = ["model" if word == MODEL else word for word in words[1:]]
        if words[0] == "train":
            words += ["--max_steps", "2", "--use_cpu", "true"]
        assert main(words) == 0, words
    assert (here / "models" / "sw" / "model.safetensors").is_file()
    assert "old name" not in capsys.readouterr().out
    assert main(["export", "runs/sw", "--format", "fold", "--output", "models/old"]) == 0  # the name before `merged`
    assert "note: --format fold is now --format merged" in capsys.readouterr().out
    assert (here / "models" / "old" / "model.safetensors").is_file()
