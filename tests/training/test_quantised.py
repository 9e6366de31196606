"""QLoRA and the other adapters from a recipe: a real quantiser, trained, exported onto the unquantised base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cctuning.cli import main
from cctuning.model.loading import load, load_base
from cctuning.serving.exporting import export
from cctuning.training.options import AdapterOptions, RunOptions
from tests.cli.world import done, metrics, records, refused, run_json, write_jsonl, write_recipe
from tests.conftest import tiny_llama
from tests.training.toys import tokenizer

IDS = torch.arange(6, 26).reshape(2, 10)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Wide enough for blocks of 64 weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
    folder = tmp_path_factory.mktemp("base") / "base"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(base, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", records())

    def write(**options) -> Path:
        given = {"tune": "lora", "model": str(base), "data": str(data), "lora_rank": 4, **options}
        return write_recipe(tmp_path / "r.yaml", **given)

    return write


@pytest.mark.parametrize(
    ("options", "as_lora"),
    [
        ({"load_in_4bit": True}, True),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "fp4", "use_rslora": True}, True),
        ({"load_in_4bit": True, "use_dora": True}, False),
        ({"load_in_8bit": True, "lora_target_modules": ["q_proj", "down_proj"]}, True),
    ],
    ids=["4 bit", "nested fp4, rslora", "4 bit, dora", "8 bit"],
)
def test_a_quantised_base_is_trained_on_and_exported_without_quantisation(options, as_lora, base, recipe, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'cc-tuning[quantized]'")
    run = tmp_path / "run"
    done("train", "--config", recipe(**options), "--output_dir", run, "--max_steps", 30, "--learning_rate", "3e-3")
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert sum(losses[-6:]) < sum(losses[:6])
    can = run_json(run)["exports"]
    assert can["merged"] is None and (can["lora"] is None) is as_lora
    fold = export(str(run), "merged", tmp_path / "fold")
    assert fold.checked.error < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "fold").eval()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert not hasattr(plain.config, "quantization_config")
    if as_lora:
        assert export(str(run), "lora", tmp_path / "lora").checked.error < 1e-4
        with_lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora").eval()
        expected = load(str(run)).connected(IDS).logits
        torch.testing.assert_close(with_lora(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_gradients_after_an_evaluation_are_those_before(base):
    """bitsandbytes repacks 4-bit weights in evaluation mode on some CPUs, into a form without a gradient."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'cc-tuning[quantized]'")
    model = load_base(
        str(base), dtype="float32", quantisation=AdapterOptions(load_in_4bit=True).quantisation("float32")
    )
    embedding = model.get_input_embeddings().weight
    embedding.requires_grad_(True)
    found = []
    for _ in range(2):
        embedding.grad = None
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        found.append(embedding.grad.clone())
        with torch.no_grad():
            model.eval()(input_ids=IDS)
    assert found[0].norm() > 0
    torch.testing.assert_close(found[0], found[1])


def test_modules_by_name_regex_and_parameter():
    def targets(**options):
        return RunOptions(model="m", tune="lora", **options).lora(tiny_llama())

    assert targets().target_modules == "all-linear"
    assert targets(lora_target_modules=["q_proj"]).target_modules == {"q_proj"}
    assert targets(lora_target_modules=[r".*\.(q|v)_proj"]).target_modules == r".*\.(q|v)_proj"
    experts = targets(lora_target_parameters=["mlp.experts.down_proj"])
    assert experts.target_parameters == ["mlp.experts.down_proj"] and not experts.target_modules
    assert targets(use_dora=True).use_dora and targets(use_rslora=True).use_rslora


def test_a_regex_in_a_recipe_is_text(recipe, tmp_path):
    run = tmp_path / "run"
    file = recipe(lora_target_modules=r".*layers\.1\..*(q|down)_proj", use_rslora=True, max_steps=1)
    done("train", "--config", file, "--output_dir", run)
    names = {name for name, _ in load(str(run)).model.named_parameters() if "lora_A" in name}
    assert {name.split(".layers.")[1].split(".lora_A")[0] for name in names} == {
        "1.self_attn.q_proj",
        "1.mlp.down_proj",
    }
    assert main(["train", "--config", str(run / "config.yaml"), "--output_dir", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        (
            {"load_in_4bit": True, "tune": "full"},
            "load_in_4bit: .* which a quantised one cannot be; set tune: lora",
        ),
        ({"load_in_8bit": True, "tune": "connection"}, "load_in_8bit: .* which a quantised one cannot be"),
        ({"lora_rank": 0}, "lora_rank: expected at least 1"),
        ({"lora_target_modules": "(q_proj"}, "no regular expression"),
        ({"bnb_4bit_quant_type": "int4"}, "int4"),
    ],
)
def test_options_that_cannot_go_together_are_one_line(options, says, recipe, tmp_path, capsys):
    import re

    said = refused(capsys, "train", "--config", recipe(**options), "--output_dir", tmp_path / "run")
    assert re.search(says, said) and not (tmp_path / "run").exists()
