"""Bad input to `cctuning train`: one line that says where and what to do, status 2, nothing written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from cctuning.cli import main
from cctuning.errors import UserError
from tests.cli.world import done, records, refused, write_csv, write_jsonl, write_model, write_parquet, write_recipe
from tests.conftest import tiny_llama
from tests.training.toys import tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def good(tmp_path):
    return write_jsonl(tmp_path / "good.jsonl", records())


@pytest.fixture
def train(tmp_path, base, good, capsys):
    """Train with these recipe keys and flags, which must be refused with `pattern`, writing nothing."""

    def run(pattern, *flags, **options):
        recipe = write_recipe(tmp_path / "recipe.yaml", **{"model": str(base), "data": str(good), **options})
        before = set(tmp_path.rglob("*"))
        said = refused(capsys, "train", "--config", recipe, "--output_dir", tmp_path / "run", *flags)
        assert re.search(pattern, said), said
        assert set(tmp_path.rglob("*")) == before
        return said

    return run


# -- the recipe and the flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("scoop: all\n", r"r\.yaml:1: unknown key 'scoop'\. Did you mean 'scope'\?"),
        ("model: m\nlearning_rat: 1\n", r"r\.yaml:2: unknown key 'learning_rat'\. Did you mean 'learning_rate'\?"),
        ("model: m\n  data: [\n", r"not valid YAML: .*line 2"),
        ("- model\n", "expected a mapping of options, got list"),
        ("", "expected a mapping of options, got NoneType"),
        ("model: m\nseed: 1\nmodel: n\n", r"r\.yaml:3: model: repeated \(first in line 1\)"),
        ("model: [m]\n", r"r\.yaml:1: model: expected text, got \['m'\]"),
        ("max_steps: 2.5\n", r"r\.yaml:1: max_steps: expected a whole number, got 2\.5"),
        ("learning_rate: abc\n", "learning_rate.*invalid float value: 'abc'"),
        ("learning_rate: true\n", r"r\.yaml:1: learning_rate: expected a number, got True"),
        ("reference_language: no\n", "reference_language: expected text, got False; put it in quotes"),
        ("save_strategy: no\n", "save_strategy: expected text.*got False; put it in quotes"),
        ("save_strategy: sometimes\n", "sometimes"),
        ("transform_rank: [4]\n", r"transform_rank: expected a whole number, got \[4\]"),
        ("layers: 3\n", "layers: expected a list"),
        ("scope: everywhere\n", r"r\.yaml:1: scope: 'everywhere' is not one of prompt_end, response, all"),
        ("tune: lorra\n", "tune: 'lorra' is not one of full, lora, connection"),
        ("bad_rows: ignore\n", "bad_rows: 'ignore'"),
        ("env: [1]\n", "env: expected a mapping"),
        ("distill_weight: 1\n", "distill_weight needs paths: both"),
        ("seed: 1\n", "model: missing"),
        ("model: m\n", "data / parallel: missing"),
        ("model: m\ndata: 5\n", r"data: expected a list.*got 5"),
        ("model: m\ndata: [5]\n", "expected a path or a mapping with path:, got 5"),
        ("model: m\ndata: {path: d, wieght: 2}\n", "unknown key 'wieght'.*Did you mean 'weight'"),
        ("model: m\ndata: {weight: 2}\n", "path: missing"),
        ("packing_strategy: wrapped\nmodel: m\n", "packing_strategy: wrapped cuts rows"),
        ("learning_rate: .nan\n", "learning_rate: expected a number, got nan"),
        ("base_decay: .nan\n", "base_decay: expected a number, got nan"),
        ("num_train_epochs: 0\n", "num_train_epochs: expected more than 0"),
    ],
)
def test_recipe(text, pattern, tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    said = refused(capsys, "train", "--config", path, "--output_dir", tmp_path / "run", "--bf16", "false")
    assert re.search(pattern, said), said
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--scop", "all"], "unknown option --scop. Did you mean 'scope'"),
        (["--scope", "everywhere"], "scope.*'everywhere'.*prompt_end"),
        (["--learning_rate", "abc"], "learning_rate.*invalid float value: 'abc'"),
        (["--learning_rate"], "learning_rate.*expected one argument"),
        (["recipe.yaml"], "unexpected argument 'recipe.yaml'; give a recipe with --config"),
        (["--config"], "--config: expected a file"),
        (["--config", "none.yaml"], "--config none.yaml: no such file, and not the name of one in the package"),
    ],
)
def test_flags(flags, pattern, capsys):
    said = refused(capsys, "train", *flags)
    assert re.search(pattern, said), said


def test_a_run_that_would_train_nothing(train):
    train("nothing would train", tune="connection", connection="none")
    train("nothing would train", tune="connection", transform="none", decision="fixed")


# -- rows -----------------------------------------------------------------------------------------------------------


def row(**changes):
    made = {"prompt": "x1 x2", "prompt_en": "w1 w2", "response": "x3", "lang": "qaa", **changes}
    return {key: value for key, value in made.items() if value is not ...}


@pytest.mark.parametrize(
    ("bad", "pattern"),
    [
        (row(prompt=...), r"rows\.jsonl:2: prompt: no such column among .* Map it"),
        (row(prompt=" "), r"rows\.jsonl:2: prompt: the prompt is empty"),
        (row(prompt=None), r"rows\.jsonl:2: prompt: no value"),
        (row(prompt=7), r"rows\.jsonl:2: prompt: expected text, found int"),
        (row(prompt_en=...), r"rows\.jsonl:2: prompt_en: no parallel of the prompt .*\(en\)"),
        (row(prompt_en="w1 w2 : x3"), r"rows\.jsonl:2: prompt_en: it ends with the response"),
        (row(lang=...), r"rows\.jsonl:2: lang: no language"),
        (row(response={"a": 1}), r"rows\.jsonl:2: response: expected text, found dict"),
        ([1], r"rows\.jsonl:2: line: expected a JSON object, found list"),
        (row(prompt="x1 " * 30), r"rows\.jsonl:2: response: no tokens of it would be left.*max_length"),
        (row(prompt_en="w1 " * 30), r"rows\.jsonl:2: reference: 30 tokens, and max_reference_length is 20.*raise"),
    ],
)
def test_row(bad, pattern, train, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", [row(), bad])
    train(pattern, data=str(data), max_length=20)


def test_files(train, tmp_path):
    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    good = json.dumps(row()).encode()
    train(
        r"latin\.jsonl:2: line: byte 0xe9 at place \d+ .*not UTF-8", data=file("latin.jsonl", good + b'\n{"a":"\xe9"}')
    )
    train(r"utf16\.jsonl:1: the file is UTF-16", data=file("utf16.jsonl", '{"a":1}'.encode("utf-16")))
    train(r"half\.jsonl:2: line: malformed JSON", data=file("half.jsonl", good + b"\n" + good[:20]))
    train(r"x\.csv:2: line: 1 cells, expected 2", data=file("x.csv", b"prompt,lang\nx1\n"))
    train(r"x\.parquet: not a readable Parquet file", data=file("x.parquet", b"PAR1"))
    train(r"x\.txt: unknown format", data=file("x.txt", b"x1"))
    train(r"empty\.jsonl: no row to train on", data=file("empty.jsonl", b""))
    train(r"z\.jsonl\.gz:1: cannot be read from here on", data=file("z.jsonl.gz", b"\x1f\x8bnot gzip"))
    train(r"godo\.jsonl: no such file or directory\. Did you mean .*good\.jsonl", data=str(tmp_path / "godo.jsonl"))
    train(r"godo\.jsonl: no such file", eval_data=str(tmp_path / "godo.jsonl"))
    table = write_parquet(tmp_path / "t.parquet", [{**row(), "prompt": 5}])
    train(r"t\.parquet:1: prompt: expected text, found int", data=str(table))
    line = write_csv(tmp_path / "t.csv", [row(), row(prompt="")])
    train(r"t\.csv:3: prompt: the prompt is empty", data=str(line))
    train(r"no usable row of|no row to train on", data=str(write_jsonl(tmp_path / "b.jsonl", [1, 2])), bad_rows="skip")


# -- models and tokenizers ------------------------------------------------------------------------------------------


def test_model_without_an_ffn(train, tmp_path):
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4, expand=1)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer().save_pretrained(tmp_path / "mamba")
    train(r"(?i)mamba", model=str(tmp_path / "mamba"))


def test_a_mistyped_directory_is_named(tmp_path, monkeypatch):
    from cctuning.model.loading import load_tokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "topics").mkdir(parents=True)
    with pytest.raises(UserError, match=r"There is no directory runs/topcs\. Did you mean 'runs/topics'"):
        load_tokenizer("runs/topcs")  # as a name of the hub has one slash too


def test_models_that_cannot_be_loaded(train, tmp_path, base):
    train("no such|cannot be loaded|not a", model=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    train(r"empty", model=str(tmp_path / "empty"))
    half = write_model(tmp_path / "half")
    weights = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    train(r"half'.*cannot be loaded", model=str(half))
    (half / "model.safetensors").unlink()
    train(r"half'.*cannot be loaded", model=str(half))
    partial = write_model(tmp_path / "partial")
    from safetensors.torch import load_file, save_file

    state = load_file(partial / "model.safetensors")
    state.pop("model.layers.1.mlp.down_proj.weight")
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    train("1 of its weights are missing .*down_proj", model=str(partial))
    (partial / "config.json").write_text("{")
    train(r"partial'.*cannot be loaded", model=str(partial))
    train("tokenizer of .*cannot be loaded", tokenizer=str(tmp_path / "empty"))
    train("dtype: 'float7'", dtype="float7")
    train("layers: .*not in this model", layers=[7])
    train("options: .*[Tt]arget modules", tune="lora", lora_target_modules=["nonesuch"])
    train(
        r"lora_target_modules: lm_head: .*lora_modules_to_save: \[lm_head\]",
        tune="lora",
        lora_target_modules="lm_head",
    )
    train("eval_strategy: steps needs eval_data", eval_strategy="steps")
    train("per_device_train_batch_size: expected at least 1, got 0", "--per_device_train_batch_size", "0")
    train("gradient_accumulation_steps: expected at least 1", gradient_accumulation_steps=0)
    train("options: .*eos_token.*nonesuch", eos_token="nonesuch")
    train("options: .*nonesuch", chat_template_path=str(tmp_path / "nonesuch.jinja"))


def test_tokenizers_that_lack_something(train, tmp_path, base):
    train("no chat template; set chat_template_path", chat=True)
    bare = tokenizer(pad=False)
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "bare")
    train("options: .*pad_token.*is not found", tokenizer=str(tmp_path / "bare"))
    bare.pad_token = "<pad>"
    bare.save_pretrained(tmp_path / "bare")
    train("no eos token.*set the recipe's eos_token", tokenizer=str(tmp_path / "bare"))
    large = tokenizer()
    large.add_tokens([f"y{i}" for i in range(40)])
    large.save_pretrained(tmp_path / "large")
    data = write_jsonl(tmp_path / "y.jsonl", [row(prompt="y39")])
    train("outside the model's vocabulary of 64", tokenizer=str(tmp_path / "large"), data=str(data))


def test_tokenizer_without_pad_token_trains_and_answers(tmp_path, good, capsys):
    base = write_model(tmp_path / "base")
    tokenizer(pad=False).save_pretrained(base)
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(good))
    done("train", "--config", recipe, "--output_dir", tmp_path / "run")
    done("generate", tmp_path / "run", "--prompt", "x1", "--max_new_tokens", 2)


def test_rows_longer_than_the_model_has_positions(train, tmp_path):
    data = write_jsonl(tmp_path / "long.jsonl", [row(prompt="x1 " * 200)])
    train("max_length: a row has 202 tokens, and the model has 128 positions; set max_length", data=str(data))


# -- runs -----------------------------------------------------------------------------------------------------------


def test_loss_that_is_not_finite(tmp_path, good, capsys):
    base = tmp_path / "base"
    broken = tiny_llama(layers=2)
    broken.model.embed_tokens.weight.data[10] = torch.nan
    broken.save_pretrained(base)
    tokenizer().save_pretrained(base)
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(good))
    said = refused(capsys, "train", "--config", recipe, "--output_dir", tmp_path / "run")
    assert re.search(r"step \d: the loss is nan at .*good\.jsonl:\d+.*lower learning_rate", said)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "stopped" and "the loss is nan" in record["error"]
    assert "has not finished" in refused(capsys, "generate", tmp_path / "run", "--prompt", "x1")


def test_runs_that_are_half_there(tmp_path, base, good, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(good), tune="lora", lora_rank=2)
    run = tmp_path / "run"
    done("train", "--config", recipe, "--output_dir", run)
    out = tmp_path / "out"

    def export(pattern):
        for verb in (["export", run, "--format", "merged", "--output", out], ["generate", run, "--prompt", "x1"]):
            said = refused(capsys, *verb)
            assert re.search(pattern, said), said
        assert not out.exists()

    def damaged(name, content, pattern):
        path = run / name
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        export(pattern)
        path.write_bytes(before)

    damaged("run.json", b'{"status": "fin', r"run\.json: cannot be read")
    damaged("run.json", b"[]", r"run\.json: cannot be read \(expected an object, got list")
    damaged("run.json", b'{"status": "running"}', "has not finished .*it has no checkpoint; remove it")
    damaged("model/connection_config.json", b"{", r"connection_config\.json: .*not the config of a connection")
    damaged(
        "model/connection_model.safetensors",
        None,
        r"connection_model\.safetensors is missing, so the directory is incomplete",
    )
    damaged("model/connection_model.safetensors", b"1234", r"connection_model\.safetensors: not a complete")
    damaged("model/adapter_config.json", b"{", r"adapter_config\.json: cannot be read")
    damaged("model/adapter_model.safetensors", b"1234", "its LoRA cannot be loaded on")
    damaged("model/adapter_model.safetensors", None, "its LoRA cannot be loaded on|cannot be loaded")
    (run / "run.json").write_text("{")
    said = refused(capsys, "train", "--config", recipe, "--output_dir", run)
    assert re.search(r"run\.json: cannot be read", said)


def test_an_adapter_for_another_model(tmp_path, base, good, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(good), tune="lora", lora_rank=2)
    run = tmp_path / "run"
    done("train", "--config", recipe, "--output_dir", run)
    other = write_model(tmp_path / "other")
    torch.manual_seed(1)
    type(tiny_llama())(tiny_llama(layers=2).config).save_pretrained(other)
    path = run / "model" / "adapter_config.json"
    config = json.loads(path.read_text())

    def moved(base):
        path.write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        return refused(capsys, "generate", run, "--prompt", "x1")

    assert "made for another model of the same shape" in moved(other)
    wide = write_model(tmp_path / "wide", tie_word_embeddings=True)
    tiny_llama(layers=3).save_pretrained(wide)
    assert "made for another model: num_hidden_layers 2, this one has 3" in moved(wide)
    assert re.search("gone.*cannot be loaded|gone.*no such", moved(tmp_path / "gone"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(train, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    train("Permission denied", "--output_dir", str(tmp_path / "locked" / "run"))


def test_a_path_through_a_file(train, good):
    train("Not a directory", "--output_dir", str(good / "run"))


def test_a_process_says_one_line(tmp_path, base):
    data = write_jsonl(tmp_path / "rows.jsonl", [row(), row(prompt="x1 " * 30)])
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(data), max_length=20)
    command = [sys.executable, "-m", "cctuning", "train", "--config", recipe, "--output_dir", tmp_path / "run"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1 and made.stderr.startswith("cctuning: error: "), made.stderr
    assert f"{data}:2: response: no tokens of it would be left" in made.stderr
    assert not (tmp_path / "run").exists()


def test_help_lists_every_option(capsys):
    for verb in ("train", "export", "generate"):
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--scope" in said and "--lora_rank" in said and "--learning_rate" in said and "--bypass" in said
