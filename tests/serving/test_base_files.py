"""An export loads where its base loads: the base's own files, and in transformers 4 with the same logits."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.serving.base_files import add_old_keys
from cctuning.serving.exporting import export
from tests.serving.world import edit_json, make

OLD = {"rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "float32", "transformers_version": "4.40.0"}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
IDS = torch.arange(6, 40)[None]


@pytest.fixture(scope="module", params=["published for 4", "saved by 5"])
def world(request, tmp_path_factory) -> Path:
    """A run on a base whose files have the older or the newer keys, exported both ways."""
    folder = tmp_path_factory.mktemp("world")
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    run = make(folder, chat=True, base={"rope_parameters": rope}, tune="lora")
    base = folder / "base"
    if request.param == "published for 4":
        edit_json(base / "config.json", rope_parameters=None, dtype=None, **OLD)
        template = (base / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").unlink()
        edit_json(base / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", chat_template=template)
        edit_json(base / "tokenizer_config.json", backend=None, is_local=None)
    for format in ("merged", "lora"):
        export(str(run), format, folder / format)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_config_and_tokenizer_are_the_bases_own(world):
    base, fold = read(world / "base" / "config.json"), read(world / "merged" / "config.json")
    assert base.items() <= fold.items()
    assert fold["rope_theta"] == 500000.0 and fold["torch_dtype"] == "float32"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for format in ("merged", "lora"):
            own, written = read(world / "base" / name), read(world / format / name)
            assert written.pop("tokenizer_class", None) != "TokenizersBackend"
            own.pop("tokenizer_class", None)
            assert written == own, (format, name)
    assert AutoTokenizer.from_pretrained(world / "merged").chat_template


def test_what_training_changed_is_written(tmp_path):
    """A template of the run's own, an eos of its own, weights parted by a LoRA on the embedding, another dtype."""
    template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    run = make(
        tmp_path,
        chat=True,
        base={"tie_word_embeddings": True},
        tune="lora",
        lora_target_modules=["embed_tokens", "q_proj"],
        chat_template_path=str(tmp_path / "own.jinja"),
        eos_token="<unk>",
    )
    edit_json(tmp_path / "base" / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    export(str(run), "merged", tmp_path / "fold", dtype="bfloat16")
    config, tokenizer = read(tmp_path / "fold" / "config.json"), AutoTokenizer.from_pretrained(tmp_path / "fold")
    assert config["tie_word_embeddings"] is False and config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert tokenizer.chat_template == template and tokenizer.eos_token == "<unk>"
    assert read(tmp_path / "base" / "config.json")["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"rope_theta": 5.0, "rope_type": "default"}, {"rope_theta": 5.0}),
        ({"rope_theta": 5.0, "rope_type": "llama3", **LLAMA3}, {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        ({"rope_theta": 5.0, "rope_type": "default", "partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}),
        (
            {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 2.0}},
            {"rope_theta": 5.0, "rope_local_base_freq": 2.0},
        ),
    ],
)
def test_older_keys(new, old):
    config = {"rope_parameters": new}
    add_old_keys(config)
    assert config["rope_parameters"] == new and old.items() <= config.items()
    config = {"rope_parameters": new, "rope_theta": 7.0}
    add_old_keys(config)
    assert config["rope_theta"] == 7.0, "what the publisher wrote stays"


@pytest.mark.slow
def test_transformers_4_has_the_same_logits(world):
    """In an environment of its own: `make test-transformers4` makes one and names its python."""
    python = os.environ.get("CC_TUNING_TRANSFORMERS4")
    if not python:
        pytest.skip("CC_TUNING_TRANSFORMERS4 names no python with transformers 4; run make test-transformers4")
    code = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
fold, lora, base, out = sys.argv[1:]
from peft import PeftModel
tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (fold, lora)]
texts = [t.apply_chat_template([{"role": "user", "content": "x1 x2"}], tokenize=False) for t in tokenizers]
ids = torch.arange(6, 40)[None]
models = [AutoModelForCausalLM.from_pretrained(fold)]
models.append(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora))
torch.save([texts, *(model.eval()(ids).logits.detach() for model in models)], out)
"""
    out = world / "found.pt"
    folders = [str(world / name) for name in ("merged", "lora", "base")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, "-c", code, *folders, str(out)], check=True, env=environment, timeout=300)
    texts, fold, lora = torch.load(out)
    expected = AutoModelForCausalLM.from_pretrained(world / "merged").eval()(IDS).logits.detach()
    torch.testing.assert_close(fold, expected, rtol=1e-4, atol=1e-4)
    if "rope_theta" in read(world / "base" / "config.json"):  # else 4 misreads the base itself
        torch.testing.assert_close(lora, expected, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(world / "merged")
    assert texts == [tokenizer.apply_chat_template([{"role": "user", "content": "x1 x2"}], tokenize=False)] * 2


def test_a_base_whose_tokenizer_has_no_config(tmp_path):
    """It loads by the model's config.json; the run has a template of its own."""
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}<end>{% endfor %}")
    run = make(tmp_path, chat=True, tune="lora", chat_template_path=str(tmp_path / "own.jinja"))
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    for format in ("merged", "lora"):
        export(str(run), format, tmp_path / format)
        written = AutoTokenizer.from_pretrained(tmp_path / format)
        assert written.chat_template == (tmp_path / "own.jinja").read_text()
