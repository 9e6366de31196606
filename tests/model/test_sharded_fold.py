"""The fold that goes from file to file gives what the fold in memory gives, bit for bit, or says that it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.errors import UserError
from cctuning.model.loading import load
from cctuning.model.merge_files import open_merge
from cctuning.model.serialization import read_weights
from tests.conftest import shake
from tests.families import build
from tests.training.toys import tokenizer

BY_FILE = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gpt2",
    "falcon",
    "bloom",
    "opt",
    "phi",
    "starcoder2",
    "cohere",
    "olmo2",
)
IN_MEMORY = ("mixtral",)  # experts are stacked when they are read


def saved(folder, family="llama", dtype=torch.float32, connection=None, lora=False):
    """A connected model on disk, in several files."""
    model = build(family).to(dtype)
    model.save_pretrained(folder / "base", max_shard_size="8KB")
    tokenizer().save_pretrained(folder / "base")
    if lora:
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder / "base"),
            LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False),
        )
    connected = ConnectedModel.attach(model, connection or ConnectionConfig("gated", transform_rank=4))
    shake(connected)
    where = folder / "adapter" if lora else folder / "base"
    connected.save_pretrained(where)
    if lora:
        connected.unload().save_pretrained(where)
    return where


def both_ways(where, folder, dtype=None):
    opened = open_merge(str(where))
    assert opened is not None
    opened.write(folder / "files", dtype, limit=20_000)
    model = load(str(where)).connected.merge_and_unload()
    (model if dtype is None else model.to(dtype)).save_pretrained(folder / "memory")
    found, expected = read_weights(folder / "files"), read_weights(folder / "memory")
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / "files" / name).read_text()) == json.loads((folder / "memory" / name).read_text())
    assert len([*(folder / "files").glob("*.safetensors")]) > 1
    return found


@pytest.mark.parametrize("family", BY_FILE)
def test_both_ways_give_the_same_bits(family, tmp_path):
    both_ways(saved(tmp_path, family), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_is_merged_as_peft_merges_it(dtype, tmp_path):
    both_ways(saved(tmp_path, dtype=dtype, lora=True), tmp_path)


def test_other_types_and_transforms(tmp_path):
    dense = ConnectionConfig("gated", transform="dense", layers=[1])
    found = both_ways(saved(tmp_path, dtype=torch.float32, connection=dense), tmp_path, torch.bfloat16)
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("family", IN_MEMORY)
def test_what_cannot_be_read_so_is_left_to_the_other_way(family, tmp_path):
    assert open_merge(str(saved(tmp_path, family))) is None


def test_what_cannot_be_folded_is_refused_as_in_memory(tmp_path):
    where = saved(tmp_path, connection=ConnectionConfig("gated", scope="response"))
    with pytest.raises(UserError, match="scope: response acts at some positions only"):
        open_merge(str(where))


def test_the_connection_of_another_base_is_refused(tmp_path):
    where = saved(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(where)
    other.model.embed_tokens.weight.data += 1
    other.save_pretrained(where, max_shard_size="8KB")
    with pytest.raises(UserError, match="made for another model of the same shape"):
        open_merge(str(where))


def test_files_are_cut_at_the_limit_and_say_when_one_is_missing(tmp_path):
    open_merge(str(saved(tmp_path))).write(tmp_path / "out", limit=8_000)
    files = [*(tmp_path / "out").glob("*.safetensors")]
    assert len(files) > 2 and not list((tmp_path / "out").glob(".*"))
    files[1].unlink()
    with pytest.raises(UserError, match="not a complete safetensors file"):
        read_weights(tmp_path / "out")
