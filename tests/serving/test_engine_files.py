"""What is said of vLLM, from the files of an adapter alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cctuning.serving.engines import RANKS, check_vllm
from cctuning.serving.exporting import export
from tests.cli.world import done
from tests.serving.world import edit_json, make


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    run = make(folder, tune="lora")
    export(str(run), "lora", folder / "out")
    return folder / "out"


@pytest.fixture
def copy(lora, tmp_path):
    return Path(shutil.copytree(lora, tmp_path / "copy"))


def test_a_lora_is_ready_and_the_server_is_told_its_rank(lora, tmp_path, capsys):
    # 4 of the base's LoRA and 16 of the transform
    assert "vLLM: supported (--enable-lora --max-lora-rank 32)" in (lora / "README.md").read_text()
    done("export", lora.parent / "run", "--format", "lora", "--output", tmp_path / "out")
    assert "\nvLLM: supported (--enable-lora --max-lora-rank 32); checked from the files" in (capsys.readouterr().out)


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 8), (256, 256), (257, 320), (512, 512), (513, None)])
def test_any_rank_up_to_the_largest_is_served(rank, expected, copy):
    edit_json(copy / "adapter_config.json", r=rank)
    too_high = f"vLLM: not supported: its rank is 513, above the maximum of {RANKS[-1]}; use --format merged"
    ready = check_vllm(copy)
    assert ready == too_high if expected is None else f"--max-lora-rank {expected})" in ready


def test_what_vllm_refuses_is_named(lora, copy, tmp_path):
    for key, value, pattern in (
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("use_dora", True, "DoRA"),
        ("lora_bias", True, "lora_bias"),
        ("bias", "all", "bias: all"),
        ("trainable_token_indices", [1], "trained tokens"),
        ("peft_type", "IA3", "no LoRA"),
        ("rank_pattern", {"q_proj": 600}, "its rank is 600"),
    ):
        folder = Path(shutil.copytree(copy, tmp_path / key))
        edit_json(folder / "adapter_config.json", **{key: value})
        said = check_vllm(folder)
        assert said.startswith("vLLM: not supported: ") and pattern in said


def test_a_base_with_biases_makes_a_lora_that_vllm_does_not_take(tmp_path, capsys):
    run = make(tmp_path, base={"mlp_bias": True}, tune="connection")
    for folder in (run / "model", tmp_path / "base"):  # they start at zero
        file = folder / "model.safetensors"
        weights = {name: tensor + ("bias" in name) for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    done("export", run, "--format", "lora", "--output", tmp_path / "out")
    assert "\nvLLM: not supported: it has biases (lora_bias)" in capsys.readouterr().out
