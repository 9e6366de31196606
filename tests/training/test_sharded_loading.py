"""A sharded start reads what from_pretrained reads, process by process, or says why it cannot."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import fsdp_utils
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cctuning.errors import UserError
from cctuning.training.sharded_checkpoints import read_adapter
from cctuning.training.sharded_loading import NotShardable, ShardedLoader
from tests.conftest import tiny_llama
from tests.families import build

ROOT = Path(__file__).parents[2]
FAMILIES = ("qwen2", "gemma2", "gpt2", "opt")


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
def test_no_process_holds_the_whole_model(tmp_path):
    """A bf16 checkpoint that is trained in fp32, as a run of all weights starts; bench/start_memory.py has more."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 8192, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, tie_word_embeddings=True)).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="32MB")
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    took = {
        way: [int(size) for size in re.findall(r"took (\d+)", processes("memory", tmp_path, way))]
        for way in ("shares", "whole")
    }
    assert len(took["shares"]) == 2 and max(took["shares"]) < 0.8 * whole  # half of it, and pages of a file
    assert len(took["whole"]) == 2 and min(took["whole"]) > whole  # transformers' way, which this is to be better than


def test_before_it_is_sharded_the_model_is_there_but_for_its_weights(tmp_path):
    """With placeholders from_pretrained makes the same model, without its memory."""
    saved = build("qwen2")  # tied
    saved.generation_config.max_new_tokens = 7
    saved.save_pretrained(tmp_path, max_shard_size="8KB")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    model = ShardedLoader(str(tmp_path), attn_implementation="eager").model
    assert type(model) is type(expected) and not model.training
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.config._attn_implementation == "eager"
    assert model.name_or_path == str(tmp_path)
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    buffers = dict(model.named_buffers())
    assert buffers and all(torch.equal(buffers[name], buffer) for name, buffer in expected.named_buffers())
    for name, parameter in expected.named_parameters():
        placeholder = model.get_parameter(name)
        assert (placeholder.shape, placeholder.dtype) == (parameter.shape, parameter.dtype)
        assert placeholder.untyped_storage().nbytes() == placeholder.element_size()
        assert placeholder.isnan().all(), "a weight that is never read must stop the run"


@pytest.mark.parametrize(("asked", "found"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_weights_have_the_type_that_was_asked_for(asked, found, tmp_path):
    build("llama").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in ShardedLoader(str(tmp_path), dtype=asked).model.parameters()} == {found}


def test_names_of_old_files_are_those_that_from_pretrained_knows(tmp_path):
    """As on the hub: GPT-2 without its prefix, and with masks that are no weights."""
    model = build("gpt2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    save_file(state, file, metadata={"format": "pt"})
    start = ShardedLoader(str(tmp_path))
    for name, parameter in start.model.named_parameters():
        assert start._weights[parameter.data_ptr()].name == name.removeprefix("transformer.")


def refused(folder: Path, **options: str) -> str:
    with pytest.raises(NotShardable) as caught:
        ShardedLoader(str(folder), **options)
    return str(caught.value)


def test_the_reason_for_loading_a_model_whole(tmp_path):
    build("mixtral").save_pretrained(tmp_path / "mixtral")
    assert "another layout than its modules" in refused(tmp_path / "mixtral")
    build("llama").save_pretrained(tmp_path / "llama")
    config, weights = tmp_path / "llama" / "config.json", tmp_path / "llama" / "model.safetensors"
    told, state = json.loads(config.read_text()), load_file(weights)
    config.write_text(json.dumps({**told, "dtype": None}))
    assert "does not name the dtype" in refused(tmp_path / "llama")
    config.write_text(json.dumps({**told, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert "quantised" in refused(tmp_path / "llama")
    config.write_text(json.dumps(told))
    save_file({name: tensor for name, tensor in state.items() if "norm" not in name}, weights)
    assert "model.layers.0.input_layernorm.weight is not in its files" in refused(tmp_path / "llama")
    save_file(state | {"model.norm.weight": torch.ones(5)}, weights)
    assert "error" in refused(tmp_path / "llama")  # its shapes differ, as transformers has reported
    weights.unlink()
    torch.save(state, tmp_path / "llama" / "pytorch_model.bin")
    assert "model.safetensors is missing" in refused(tmp_path / "llama")
    assert "no dtype of weights" in refused(tmp_path / "llama", dtype="int8")


def test_accelerate_still_calls_this_function():
    """accelerate asks this function, by this name, for the weights of a model sharded on the meta device."""
    load = inspect.signature(fsdp_utils.fsdp2_load_full_state_dict)
    assert list(load.parameters) == ["accelerator", "model", "full_sd", "cpu_offload"]
    own = set(inspect.signature(ShardedLoader._fill).parameters) - {"self"}
    assert own == set(load.parameters)
    assert "fsdp2_load_full_state_dict(" in inspect.getsource(fsdp_utils.fsdp2_prepare_model)
    offset = inspect.signature(compute_local_shape_and_global_offset)
    assert list(offset.parameters)[:3] == ["global_shape", "mesh", "placements"]


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
