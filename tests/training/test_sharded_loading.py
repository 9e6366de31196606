"""A model that is sharded has the weights that from_pretrained reads, and only the first process loads them."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cctuning.errors import UserError
from cctuning.training.run import without_weights
from cctuning.training.saving import read_adapter
from tests.conftest import tiny_llama
from tests.families import build

ROOT = Path(__file__).parents[2]
FAMILIES = ("qwen2", "gemma2", "gpt2", "opt", "mixtral")


def odd(tied: bool) -> LlamaForCausalLM:
    """Sizes that two processes cannot halve."""
    sizes = {"hidden_size": 30, "intermediate_size": 41, "vocab_size": 63, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied, dtype=torch.float32))


def processes(*arguments: object) -> str:
    """Run `tests.training.sharded_loading_worker` in two; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "tests.training.sharded_loading_worker", *(str(argument) for argument in arguments)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # large blocks are handed back as soon as they are free
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("no", "float32"), ("bf16", "bfloat16")])
def test_every_process_gets_its_share_of_what_from_pretrained_reads(precision, dtype, tmp_path):
    for family in FAMILIES:
        build(family).save_pretrained(tmp_path / family, max_shard_size="8KB")
    for tied in (False, True):
        odd(tied).save_pretrained(tmp_path / f"odd-{tied}", max_shard_size="8KB")
    processes("compare", tmp_path, precision, dtype)


@pytest.mark.slow
def test_only_the_first_process_holds_the_whole_model(tmp_path):
    """A bf16 checkpoint that is trained in fp32, as a run of all weights starts."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 8192, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, tie_word_embeddings=True)).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="32MB")
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    took = dict(re.findall(r"process (\d) took (\d+)", processes("memory", tmp_path)))
    assert int(took["1"]) < 0.9 * whole < whole < int(took["0"])


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_the_model_without_weights_has_everything_else(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    model = without_weights(str(tmp_path), copy.deepcopy(expected.config))
    assert type(model) is type(expected) and not model.training
    assert model.config.to_dict() == expected.config.to_dict()
    buffers = dict(model.named_buffers())
    assert buffers and all(torch.equal(buffers[name], buffer) for name, buffer in expected.named_buffers())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    for name, parameter in expected.named_parameters():
        placeholder = model.get_parameter(name)
        assert (placeholder.shape, placeholder.dtype) == (parameter.shape, parameter.dtype)
        assert placeholder.untyped_storage().nbytes() == placeholder.element_size()
        assert placeholder.isnan().all(), "a weight that is not distributed must stop the run"


@pytest.mark.parametrize("name", ["default", "task"])
def test_an_adapter_is_read_whole_or_not_at_all(name, tmp_path):
    """Also its factors of an embedding, whose names end with the adapter's."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    saved, other = (get_peft_model(tiny_llama(layers=2), config, adapter_name=name) for _ in range(2))
    saved.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if "lora_" in key:
                parameter.zero_()
    read_adapter(other, folder, name)
    expected = {key: value for key, value in saved.named_parameters() if "lora_" in key}
    assert expected and all(torch.equal(dict(other.named_parameters())[key], value) for key, value in expected.items())
    with pytest.raises(UserError, match="weights do not match the model's by name"):
        read_adapter(get_peft_model(tiny_llama(layers=1), config, adapter_name=name), folder, name)
