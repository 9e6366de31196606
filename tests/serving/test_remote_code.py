"""Checkpoints with a modeling file for nonlinear transforms: loaded by transformers alone, with consent."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.model.loading import Loaded, load
from cctuning.serving import modeling_connected as template
from cctuning.serving.remote_code import write_code
from tests.cli.world import done as cctuning
from tests.cli.world import refused
from tests.conftest import shake, tiny_llama
from tests.families import build
from tests.serving.world import make

IDS = torch.arange(6, 18)[None]
NONLINEAR = ConnectionConfig("gated", transform="nonlinear", transform_rank=5)


def attached(model, config: ConnectionConfig = NONLINEAR) -> Loaded:
    connected = ConnectedModel.attach(model, config).eval()
    shake(connected, 0.3)
    return Loaded(model, connected, None, {})


def opened(directory: Path, **options):
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **options).eval()


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tmp_path_factory):
    """A run of `cctuning train` with a non-linear transform that is far from the identity."""
    return make(tmp_path_factory.mktemp(request.param), transform="nonlinear", tune=request.param)


def test_transformers_alone_loads_it_with_the_logits_of_the_student_pass(run, tmp_path, capsys):
    out = tmp_path / "out"
    cctuning("export", run, "--format", "code", "--output", out)
    assert "trust_remote_code=True" in capsys.readouterr().out
    script = (
        "import sys, torch; sys.modules['cctuning'] = None\n"  # an import of it would fail
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})\n"
        "batch = tokenizer(['x1 x2', 'x3 x4 x5'], return_tensors='pt', padding=True, padding_side='left')\n"
        "tokens = model.generate(**batch, max_new_tokens=8, do_sample=False)\n"
        f"torch.save([model(torch.arange(6, 18)[None]).logits.detach(), tokens], {str(tmp_path / 'said.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    logits, tokens = torch.load(tmp_path / "said.pt", weights_only=True)
    loaded = load(str(run))
    expected = loaded.connected(IDS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    with loaded.connected.disable_adapter():
        assert not torch.allclose(logits, loaded.connected(IDS).logits, atol=1e-2)
    batch = loaded.tokenizer(["x1 x2", "x3 x4 x5"], return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": loaded.tokenizer.eos_token_id}
    ours = loaded.connected.generate(batch["input_ids"], batch["attention_mask"], pad_token_id=0, **options)
    assert torch.equal(tokens, ours)


def test_the_code_on_the_card_asks_for_no_consent_that_it_has_given(run, tmp_path, capsys, monkeypatch):
    cctuning("export", run, "--format", "code", "--output", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1).replace("…", "x1 x2").replace("=256", "=8")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    said = capsys.readouterr().out.strip()
    assert not asked
    cctuning("generate", run, "--prompt", "x1 x2", "--max_new_tokens", 8)
    assert capsys.readouterr().out.strip() == said


def test_our_own_commands_read_it_with_consent(run, tmp_path, capsys):
    out = tmp_path / "out"
    cctuning("export", run, "--format", "code", "--output", out)
    capsys.readouterr()
    cctuning("generate", run, "--prompt", "x1 x2", "--max_new_tokens", 8)
    answer = capsys.readouterr().out
    cctuning("generate", out, "--prompt", "x1 x2", "--max_new_tokens", 8, "--trust_remote_code")
    assert capsys.readouterr().out == answer
    assert "custom code" in refused(capsys, "generate", out, "--prompt", "x1")


def test_without_consent_nothing_is_loaded(tmp_path):
    write_code(attached(tiny_llama(layers=2)), tmp_path)
    for options in ({}, {"trust_remote_code": False}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize(
    "family", ["gpt2", "bloom", "opt", "falcon", "gemma2", "qwen2", "mixtral", "gpt_oss", "llama4"]
)
def test_families(family, tmp_path):
    """An FFN without a block around it, one that adds the residual, in-place layers, tied weights, experts."""
    loaded = attached(build(family))
    with torch.no_grad():
        expected = loaded.connected(IDS).logits
        write_code(loaded, tmp_path)
        torch.testing.assert_close(opened(tmp_path)(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_some_layers_alone(tmp_path):
    config = ConnectionConfig("gated", transform="nonlinear", transform_rank=5, layers=[1])
    loaded = attached(tiny_llama(), config)
    expected = loaded.connected(IDS).logits
    write_code(loaded, tmp_path)
    torch.testing.assert_close(opened(tmp_path)(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert list(json.loads((tmp_path / "config.json").read_text())["connection"]["blocks"]) == ["model.layers.1"]


def test_maps_stay_in_fp32_on_a_bf16_base(tmp_path):
    tiny_llama().bfloat16().save_pretrained(tmp_path / "base")
    loaded = attached(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto"))
    expected = loaded.connected(IDS).logits
    write_code(loaded, tmp_path / "trained")
    model = opened(tmp_path / "trained", dtype="auto")
    assert model.dtype == torch.bfloat16 and model.model.layers[0].connection.up.weight.dtype == torch.float32
    assert torch.equal(model(IDS).logits, expected)

    write_code(attached(tiny_llama()), tmp_path / "cast", torch.bfloat16)
    stored = load_file(tmp_path / "cast" / "model.safetensors")
    kinds = {name.rpartition("layers.0.")[2]: tensor.dtype for name, tensor in stored.items()}
    assert kinds["connection.up.weight"] == torch.float32 and kinds["mlp.down_proj.weight"] == torch.bfloat16


def test_saved_again_it_is_still_whole(tmp_path):
    write_code(attached(tiny_llama()), tmp_path / "one")
    model = opened(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    assert torch.equal(opened(tmp_path / "two")(IDS).logits, model(IDS).logits)


def test_the_modelling_file_needs_torch_and_transformers_alone(tmp_path):
    write_code(attached(build("qwen2")), tmp_path)
    source = (tmp_path / "modeling_connected.py").read_text()
    assert "Qwen2ForCausalLM as BaseModel" in source and "Llama" not in source
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "typing", "torch", "transformers"}
    assert len(source.splitlines()) < 80  # one reads it before one allows it
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "modeling_connected.py"}


class Foreign(LlamaForCausalLM):
    """A base whose class is not transformers' own."""


def test_what_cannot_be_written_so_is_refused(tmp_path):
    out = tmp_path / "out"
    torch.manual_seed(0)
    foreign = Foreign(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1))
    broken = attached(tiny_llama())
    broken.connected.connections[1].transform.up.weight.data[0, 0] = torch.nan
    refusals = [
        (attached(tiny_llama(), ConnectionConfig("gated")), "this connection can be merged"),
        (
            attached(tiny_llama(), ConnectionConfig("gated", transform="nonlinear", scope="response")),
            "scope: all",
        ),
        (
            attached(tiny_llama(), ConnectionConfig("gated", scope="response")),
            "scope: all, and this run has scope: response",
        ),
        (attached(foreign), "Foreign is not a class of transformers"),
        (Loaded(tiny_llama(), None, None, {}), "the model has no connection"),
        (broken, "layer 1: .* NaN"),
    ]
    for loaded, pattern in refusals:
        with pytest.raises(UserError, match=re.compile(pattern)):
            write_code(loaded, out)
        assert not out.exists()


def test_the_template_computes_what_training_did():
    connected = attached(tiny_llama()).connected
    trained = connected.connections[0].transform
    copy = template.Transform(32, 5)
    copy.load_state_dict(trained.state_dict())
    hidden = torch.randn(2, 7, 32)
    assert torch.equal(copy(hidden), hidden + trained(hidden))
