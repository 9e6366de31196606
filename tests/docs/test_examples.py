"""Python in the guides that stands by itself runs, on a small model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.docs.small import NOTEBOOKS, small_model

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def code(page: str, number: int = 0) -> str:
    return re.findall(r"^```python\n(.*?)^```", (GUIDES / page).read_text(encoding="utf-8"), re.M | re.S)[number]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the files that the pages name, and a model."""
    shutil.copy(NOTEBOOKS / "data" / "english.jsonl", tmp_path / "rows.jsonl")
    shutil.copy(NOTEBOOKS / "data" / "pairs.jsonl", tmp_path)
    small_model(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_from_python(here):
    text = (
        code("train.md", 1).replace("Qwen/Qwen2.5-1.5B-Instruct", "base").replace("num_train_epochs=2", "max_steps=2")
    )
    exec(compile(text, "train.md", "exec"), {})
    assert (here / "runs" / "sw" / "model" / "adapter_model.safetensors").is_file()


def test_a_training_loop_of_ones_own(here):
    text = code("extend.md").replace("range(100)", "range(2)").replace("total_steps = 100", "total_steps = 2")
    names = {"model": AutoModelForCausalLM.from_pretrained("base"), "tokenizer": AutoTokenizer.from_pretrained("base")}
    exec(compile(text, "extend.md", "exec"), names)
    assert AutoModelForCausalLM.from_pretrained("model").config.model_type == "llama"
