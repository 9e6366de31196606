"""Every recipe of `recipes/` runs as it is written, but on a tiny random model of its family, on the CPU.

What a flag overrides is only what the machine or the model's size decides: paths, lengths, the dtype, the number of
steps. Everything else, down to the optimiser and the checkpointing, is the recipe's own.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.cli import main
from cctuning.cli.options import parse
from cctuning.connection import ConnectionConfig
from cctuning.model.loading import load
from cctuning.model.serialization import WEIGHTS_FILE
from cctuning.training import CCConfig
from cctuning.training.options import RunOptions
from tests.families import build
from tests.training.toys import rows, tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = RECIPES / "real-rows"
FAMILIES = {  # the start of a recipe's name -> the family in tests/families.py
    "llama-3.1-8b": "llama",
    "qwen2.5-7b": "qwen2",
    "qwen3-8b": "qwen3",
    "mistral-7b": "mistral",
    "gemma-2-9b": "gemma2",
}
KINDS = (RunOptions, ConnectionConfig, CCConfig)
METHODS = ("vanilla", "align", "cc")
CONNECTION = {option.name for option in fields(ConnectionConfig)}


def read(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with rows.jsonl and eval.jsonl, in the columns that the recipes describe."""
    folder = tmp_path_factory.mktemp("rows")
    for name, seed in (("rows", 0), ("eval", 1)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows(24, seed):
                # toys' references hold the response's words, which these files may not
                response = row["response"] and row["response"] + " x25"
                record = {"prompt": row["prompt"], "response": response, "lang": row["lang"]}
                record |= {"prompt_en": row["reference"]} if row["reference"] else {}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """family -> directory of a tiny random model with a chat tokenizer; a family that cannot be built is an error."""
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = folder / family
            build(family, max_position_embeddings=128, eos_token_id=1).save_pretrained(made[family])
            tokenizer(chat=True).save_pretrained(made[family])
        return made[family]

    return make


FP32 = {"bf16": "false", "dtype": "float32"}


def train(name: str, model: Path, files: Path, run: Path, precision: dict[str, str] = FP32) -> int:
    """Train two steps by the recipe `name`; the run's own config.yaml has to say what the recipe does."""
    recipe = read(name)
    flags = {"model": model, "data": files / "rows.jsonl", "output_dir": run, "max_steps": 2, "report_to": "none"}
    flags |= {"eval_data": files / "eval.jsonl"} if "eval_data" in recipe else {}
    flags |= {"eval_steps": 2, "save_steps": 2, "logging_steps": 1, "max_length": 64}
    flags |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2} | precision
    given = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    status = main(["train", "--config", str(RECIPES / f"{name}.yaml"), *given])
    if status == 0:
        again = parse("again", "", KINDS, ["--config", str(run / "config.yaml")])
        options = {key: value for part in again for key, value in vars(part).items()}
        for key in recipe.keys() - flags.keys():
            value = options[key].value if isinstance(options[key], Enum) else options[key]
            assert value == recipe[key], key
    return status


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def check(name: str, model: Path, files: Path, tmp_path: Path) -> None:
    """Train, export in every form the recipe allows, load with plain libraries, compare with the run itself."""
    run, fold, adapter = tmp_path / "run", tmp_path / "fold", tmp_path / "adapter"
    assert train(name, model, files, run) == 0
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["steps"] == 2 and record["chat"] is True
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ("eval_data" in read(name)) == any("eval_loss" in line for line in metrics)

    assert main(["export", str(run), "--format", "merged", "--output", str(fold)]) == 0
    ids = torch.tensor([[2, 40, 7, 33, 1, 3]])
    trained = load(str(run))
    expected = logits(trained.connected or trained.model, ids)
    plain = AutoModelForCausalLM.from_pretrained(fold)
    torch.testing.assert_close(logits(plain, ids), expected, rtol=1e-4, atol=1e-4)
    untouched = AutoModelForCausalLM.from_pretrained(model)
    assert not torch.equal(logits(untouched, ids), logits(plain, ids))
    assert AutoTokenizer.from_pretrained(fold).chat_template

    code = main(["export", str(run), "--format", "lora", "--output", str(adapter)])
    if read(name)["tune"] == "lora":
        assert code == 0
        with_adapter = PeftModel.from_pretrained(untouched, adapter)
        torch.testing.assert_close(logits(with_adapter, ids), expected, rtol=1e-4, atol=1e-4)
    else:
        assert code == 2 and not adapter.exists()


def test_every_recipe_is_tested() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert names == {*METHODS, "pack", *(f"{start}-{tune}" for start in FAMILIES for tune in ("full", "lora"))}


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("start", FAMILIES)
def test_recipe_for_real_use(start: str, tune: str, base, files: Path, tmp_path: Path) -> None:
    name = f"{start}-{tune}"
    recipe = read(name)
    assert recipe["tune"] == tune and recipe["output_dir"] == f"runs/{name}"
    assert recipe["bf16"] and recipe["activation_checkpointing"] and recipe["eval_data"]
    check(name, base(FAMILIES[start]), files, tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str, base, files: Path, tmp_path: Path, capsys) -> None:
    check(name, base("llama"), files, tmp_path)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert config["learning_rate"] == read(name)["learning_rate"]


def test_a_pack(base, files: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (files / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [
        {"text": line["prompt"], "text_en": line["prompt_en"], "lang": "qu"} for line in lines if "prompt_en" in line
    ]
    text = tmp_path / "pairs.jsonl"
    text.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    given = ["--parallel", str(text), "--output_dir", str(tmp_path / "pack"), "--use_cpu", "true"]
    given += ["--per_device_train_batch_size", "4"]  # the first step has a rate of 0
    assert main(["align", str(base("llama")), "--config", "pack", *given]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (base("llama"), tmp_path / "pack/model"))
    ids = torch.tensor([[2, 40, 7, 33, 1, 3]])
    assert not torch.equal(logits(before, ids), logits(after, ids))


def test_methods_differ_in_the_connection_alone() -> None:
    recipes = [{key: value for key, value in read(name).items() if key not in CONNECTION} for name in METHODS]
    assert recipes[0] == recipes[1] == recipes[2]
    assert all(set(read(name)) & CONNECTION for name in METHODS)


@pytest.mark.parametrize("start", FAMILIES)
def test_full_and_lora_have_the_same_connection_and_rows(start: str) -> None:
    full, lora = read(f"{start}-full"), read(f"{start}-lora")
    keys = CONNECTION | {"data", "eval_data", "model", "max_length", "seed"}
    assert {key: full.get(key) for key in keys} == {key: lora.get(key) for key in keys}
    for recipe in (full, lora):
        assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 32


@pytest.mark.parametrize("name", ["qwen2.5-7b-lora", "mistral-7b-full"])
def test_recipe_in_its_own_precision(name: str, base, files: Path, tmp_path: Path) -> None:
    """bf16 as written; only the machine differs."""
    assert train(name, base(FAMILIES[name[:-5]]), files, tmp_path / "run", {"use_cpu": "true"}) == 0
    loaded = load(str(tmp_path / "run"))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in loaded.model.parameters())


def test_what_learns_beside_a_base_in_bf16_is_in_fp32(base, files: Path, tmp_path: Path) -> None:
    assert train("cc", base("llama"), files, tmp_path / "run", {"use_cpu": "true"}) == 0
    weights = load_file(tmp_path / "run" / "model" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# -- real rows -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_small_base", REAL / "make_small_base.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_rows_from_text_to_answers(script, data_dir: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CC_TUNING_DATA", str(data_dir))
    recipe = yaml.safe_load((REAL / "alpaca-zh-gsm8k-sw.yaml").read_text(encoding="utf-8"))
    for source in recipe["data"]:
        source["limit"] = 24
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    base, run, fold = (str(tmp_path / name) for name in ("base", "run", "fold"))
    script.main([str(small), base, "--steps", "20", "--vocabulary", "600", "--hidden_size", "48", "--layers", "2"])
    made = AutoTokenizer.from_pretrained(base)
    assert (
        made.pad_token != made.eos_token
        and made.decode(made("写一句关于春天的话。")["input_ids"]) == "写一句关于春天的话。"
    )

    flags = ["--model", base, "--output_dir", run, "--max_steps", "2", "--report_to", "none", "--save_steps", "2"]
    assert main(["train", "--config", str(small), *flags]) == 0
    record = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["chat"] is True
    languages = [source["languages"] for source in record["data"]["sources"]]
    assert languages[0]["zh"] == languages[0]["en"] == languages[1]["sw"] == 24
    assert main(["export", run, "--format", "merged", "--output", fold]) == 0
    plain = AutoModelForCausalLM.from_pretrained(fold)
    assert type(plain).__name__ == "LlamaForCausalLM"

    prompts = ["Juma ana maembe 3 na ananunua 4 zaidi. Ana maembe mangapi?", "写一句关于春天的话。", "Name a colour."]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    answers = {}
    for model in (fold, run):
        capsys.readouterr()
        assert main(["generate", model, "--file", str(tmp_path / "ask.jsonl"), "--max_new_tokens", "8"]) == 0
        answers[model] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in answers[fold]] == prompts
    assert answers[fold] == answers[run]  # greedy, and the fold is the run
    assert any(row["answer"] for row in answers[fold])
    assert main(["generate", fold, "--prompt", prompts[0], "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == answers[fold][0]["answer"]


def test_a_base_is_never_overwritten(script, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        script.main([str(REAL / "alpaca-zh-gsm8k-sw.yaml"), str(tmp_path / "there")])
