"""Python in the guides that stands by itself runs, on a small model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import CCConfig, CCTrainer, ConnectionConfig
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


def test_a_pack_added_to_a_task_that_was_trained_apart(here):
    """The sum of both changes of the base."""
    given = {
        "adapters/task": ("none", {"train_dataset": Dataset.from_json("rows.jsonl")}),
        "packs/sw/model": ("align", {"parallel_dataset": Dataset.from_json("pairs.jsonl")}),
    }
    base, summed = AutoModelForCausalLM.from_pretrained("base").state_dict(), {}
    for folder, (connection, rows) in given.items():
        options = CCConfig("o", max_steps=2, warmup_steps=0, learning_rate=1e-2, report_to="none", save_strategy="no")
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        trainer = CCTrainer("base", options, ConnectionConfig(connection, layers=[0, 1]), **rows, peft_config=lora)
        trainer.train()
        trainer.save_model(folder)
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), folder).merge_and_unload()
        for name, weight in alone.state_dict().items():
            summed[name] = summed.get(name, base[name]) + weight - base[name]
        assert any(not torch.equal(weight, base[name]) for name, weight in alone.state_dict().items())
    names: dict = {}
    exec(compile(code("language-pack.md").replace("Qwen/Qwen2.5-1.5B-Instruct", "base"), "pack", "exec"), names)
    for name, weight in names["model"].state_dict().items():
        torch.testing.assert_close(weight, summed[name], rtol=0, atol=1e-6)
