"""What an export carries beside its weights, and what is refused before or leaves nothing behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from cctuning.cli import main
from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.model.loading import load
from cctuning.serving.answering import encoder_of
from cctuning.serving.engines import EXPORT_FILE
from cctuning.serving.exporting import export
from cctuning.serving.stop_tokens import generation_config
from tests.cli.world import done, records, refused, write_jsonl, write_model, write_recipe
from tests.conftest import tiny_llama
from tests.serving.world import edit_json, make, make_turns
from tests.training.toys import TEMPLATE, tokenizer

IDS = torch.arange(6, 18)[None]
PROMPTS = ("x1 x2", "w3", "x4 x5 x6 x7")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run"), chat=True, tune="lora")


@pytest.fixture
def copy(run, tmp_path):
    """The run again, for a test that breaks it."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def served(directory, prompt):
    """A prompt's tokens as a server makes them: its own tokenizer and template, no word of ours."""
    messages = [{"role": "user", "content": prompt}]
    made = AutoTokenizer.from_pretrained(directory)
    return made.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def manifest_of(directory):
    return json.loads((directory / EXPORT_FILE).read_text())


# -- template, stop tokens, manifest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_the_template_of_training_goes_along_where_the_base_has_none(format, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE.replace("<{{ m['role'] }}> ", "<{{ m['role'] }}> x9 "))
    run = make(tmp_path, tune="lora", chat_template_path=str(template))
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template is None
    export(str(run), format, tmp_path / "out")
    written = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert (
        template.read_text() in written and "{{ 'x9 ' }}" in written
    )  # what it writes before an answer: in the prompt
    loaded = load(str(run))
    encoder = encoder_of(loaded.tokenizer, loaded.run)
    for prompt in PROMPTS:
        assert served(tmp_path / "out", prompt) == encoder.prompt_ids(prompt)


def test_a_run_without_a_template_is_given_none(run, tmp_path, capsys):
    config = tmp_path / "no-chat.yaml"
    config.write_text((run / "config.yaml").read_text() + "chat: false\n")
    done("train", "--config", config, "--output_dir", tmp_path / "bare")
    capsys.readouterr()
    done("export", tmp_path / "bare", "--format", "merged", "--output", tmp_path / "fold")
    assert "prompts: plain text, as in training, without a chat template" in capsys.readouterr().out
    assert not (tmp_path / "fold" / "chat_template.jinja").exists()
    assert not manifest_of(tmp_path / "fold")["chat"]
    assert "there is no chat template: send the prompt as it is" in (tmp_path / "fold" / "README.md").read_text()
    made = AutoTokenizer.from_pretrained(tmp_path / "fold")
    assert made.chat_template is None
    bare = load(str(tmp_path / "bare"))
    assert made("x1 x2")["input_ids"] == encoder_of(bare.tokenizer, bare.run).prompt_ids("x1 x2")


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_generation_ends_where_training_did(format, tmp_path):
    folder = tmp_path / "turns"
    folder.mkdir()
    run = make_turns(folder, tune="lora")
    export(str(run), format, tmp_path / "out")
    turn = AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<turn>")
    ends = GenerationConfig.from_pretrained(tmp_path / "out")
    assert turn in ends.eos_token_id and 1 in ends.eos_token_id and ends.pad_token_id == 0
    manifest = manifest_of(tmp_path / "out")
    assert manifest["stop_token_ids"] == ends.eos_token_id and manifest["stop"] is None
    found = [manifest[key] for key in ("kind", "reference_language", "languages", "chat")]
    assert found == [format, "en", ["qaa"], True]


def test_a_turn_that_ends_in_plain_text_is_told_and_not_left_to_generate(copy, tmp_path, capsys):
    made = AutoTokenizer.from_pretrained(copy / "model")
    made.chat_template = made.chat_template.replace("<end>", " x9 x8")
    made.save_pretrained(copy / "model")
    done("export", copy, "--format", "merged", "--output", tmp_path / "out")
    assert "end at the text 'x9 x8': send it as stop" in capsys.readouterr().out
    assert manifest_of(tmp_path / "out")["stop"] == "x9 x8"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.generate(IDS, max_new_tokens=2).shape == (1, 14)  # stop_strings would want a tokenizer here


def test_a_generation_config_that_contradicts_itself_is_named():
    model = tiny_llama(2)
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    with pytest.raises(UserError, match=r"generation_config\.json of .*temperature"):
        generation_config(Encoder(tokenizer()), model)


def test_a_tokenizer_that_closes_prompts_by_itself_is_noted(copy, tmp_path):
    from tokenizers.processors import TemplateProcessing

    edit_json(copy / "run.json", chat=False)
    made = AutoTokenizer.from_pretrained(copy / "model")
    made.backend_tokenizer.post_processor = TemplateProcessing("$A <end>", special_tokens=[("<end>", 1)])
    made.save_pretrained(copy / "model")
    written = export(str(copy), "merged", tmp_path / "out")
    assert [note for note in written.notes if "tokenizes a prompt differently from training" in note]


def test_a_tokenizer_with_more_tokens_than_the_model_has(copy, tmp_path):
    made = AutoTokenizer.from_pretrained(copy / "model")
    made.add_tokens([*(f"new{number}" for number in range(100)), "capital"])
    made.save_pretrained(copy / "model")
    assert export(str(copy), "merged", tmp_path / "out").checked.error < 1e-5


# -- weights ----------------------------------------------------------------------------------------------------------


def test_shards_hold_the_same_model(run, tmp_path, monkeypatch):
    export(str(run), "merged", tmp_path / "one")
    sharded = partialmethod(PreTrainedModel.save_pretrained, max_shard_size="20KB")  # of large models by default
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", sharded)
    export(str(run), "merged", tmp_path / "many")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(IDS).logits for name in ("one", "many"))
    assert torch.equal(one, many)


def test_the_dtype_is_kept_or_converted(run, tmp_path):
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        export(str(run), "merged", tmp_path / dtype, dtype=dtype)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto").dtype == expected


def test_a_wider_dtype_than_the_weights_have_is_not_rounded_on_the_way(tmp_path):
    run = make(tmp_path, tune="lora")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    found = export(str(run), "merged", tmp_path / "wide", dtype="float32")
    assert found.checked.error < 1e-5
    assert load(str(run)).model.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["embed_tokens", "q_proj"]])
def test_tied_embeddings_stay_tied_unless_a_lora_parts_them(targets, tmp_path):
    """Merged into a weight of two uses, a LoRA on one of them would act in both."""
    run = make(tmp_path, base={"tie_word_embeddings": True}, tune="lora", lora_target_modules=targets)
    parted = "embed_tokens" in targets
    weights = load(str(run)).model
    torch.manual_seed(0)
    for name, parameter in weights.named_parameters():
        if "lora_" in name:  # a fresh LoRA is the identity
            parameter.data = torch.randn_like(parameter) / 4
    weights.save_pretrained(run / "model")
    expected = load(str(run)).connected(IDS).logits
    export(str(run), "merged", tmp_path / "fold")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "fold").eval()
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) is not parted
    assert plain.config.tie_word_embeddings is not parted
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_lora_is_read_by_peft_with_nothing_of_ours(run, tmp_path):
    export(str(run), "lora", tmp_path / "lora")
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    plain = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    torch.testing.assert_close(plain(IDS).logits, load(str(run)).connected(IDS).logits, rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "lora").eval()  # transformers finds the base by itself
    torch.testing.assert_close(plain(IDS).logits, load(str(run)).connected(IDS).logits, rtol=1e-4, atol=1e-4)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["merged", "lora"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_quantised_base_is_refused_by_name(format, method, copy, tmp_path):
    base = Path(shutil.copytree(copy / "model", tmp_path / "base"))
    edit_json(copy / "model" / "adapter_config.json", base_model_name_or_path=str(base))
    tiny_llama(2).config.save_pretrained(base)
    edit_json(base / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True, "bits": 4})
    with pytest.raises(UserError, match=rf"{base}: the weights are quantized \({method}, see quantization_config"):
        export(str(copy), format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_that_are_missing_of_another_version_or_half_written_are_refused(copy, tmp_path, capsys):
    def damaged(name, damage):
        folder = Path(shutil.copytree(copy, tmp_path / name))
        damage(folder)
        return folder

    def cut(path):
        path.write_bytes(path.read_bytes()[:-50])

    record = json.loads((copy / "run.json").read_text())
    no_data = {key: value for key, value in record["data"].items() if key != "sources"}
    base = copy / "nothing"
    shutil.copytree(Path(record["model"]), base)
    cases = [
        (damaged("bare", lambda run: (run / "run.json").unlink()), r"no run\.json, config\.json or adapter"),
        (damaged("broken", lambda run: cut(run / "run.json")), r"run\.json: cannot be read"),
        (damaged("running", lambda run: edit_json(run / "run.json", status="running")), "has not finished"),
        (
            damaged("older", lambda run: edit_json(run / "run.json", data=no_data)),
            r"data\.sources is missing.*0\.1\.0",
        ),
        (damaged("no-chat", lambda run: edit_json(run / "run.json", chat=None)), "chat is missing or has"),
        (damaged("no-options", lambda run: (run / "config.yaml").unlink()), r"config\.yaml: cannot be read"),
        (damaged("options", lambda run: (run / "config.yaml").write_text("- a")), "expected a mapping of options"),
        (
            damaged("no-config", lambda run: (run / "model" / "connection_config.json").unlink()),
            r"connection_config\.json is missing, but the run trained a connection",
        ),
        (
            damaged("newer", lambda run: edit_json(run / "model" / "connection_config.json", format=7)),
            "format 7, this version reads 1",
        ),
        (
            damaged("no-weights", lambda run: (run / "model" / "connection_model.safetensors").unlink()),
            "is missing, so the directory is incomplete",
        ),
        (
            damaged("cut", lambda run: cut(run / "model" / "connection_model.safetensors")),
            "not a complete safetensors file",
        ),
        (damaged("lora", lambda run: cut(run / "model" / "adapter_model.safetensors")), "LoRA cannot be loaded on"),
        (base, r"no run\.json beside it and no connection_config\.json in it, so it is a plain checkpoint"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for run, pattern in cases:
        said = refused(capsys, "export", run, "--format", "merged", "--output", tmp_path / "out")
        assert re.search(pattern, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_half_a_checkpoint_is_refused(run, copy, tmp_path, capsys):
    half = Path(shutil.copytree(copy / "model", copy / "checkpoint-3"))
    said = refused(capsys, "export", half, "--format", "merged", "--output", tmp_path / "out")
    assert "incomplete checkpoint (no complete trainer_state.json" in said


def test_a_model_apart_from_its_run_is_exported_and_its_card_says_what_it_lacks(copy, tmp_path):
    apart = (copy / "model").rename(tmp_path / "apart")
    written = export(str(apart), "merged", tmp_path / "out")
    assert written.notes == [
        "The record of the run was not found; the model card has no data and no training options."
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The record of the run was not found: data" in card and "Not known (see above)" in card
    assert written.manifest.reference_language == "en" and written.manifest.languages == []


def test_options_out_of_place_are_refused(run, tmp_path, capsys):
    out = tmp_path / "out"
    refusals = [
        (("--format", "lora", "--dtype", "bfloat16"), "--dtype: only for a merged checkpoint"),
    ]
    for argv, pattern in refusals:
        said = refused(capsys, "export", run, *argv, "--output", out)
        assert re.search(pattern, said), said
    assert not list(tmp_path.iterdir())


def test_the_old_name_of_a_format_is_an_alias_with_a_note(run, tmp_path, capsys):
    done("export", run, "--format", "fold", "--output", tmp_path / "old")
    assert "note: --format fold is now --format merged" in capsys.readouterr().out
    assert manifest_of(tmp_path / "old")["kind"] == "merged"
    done("export", run, "--format", "merged", "--output", tmp_path / "new")
    said = capsys.readouterr().out
    assert "fold" not in said and "load it: AutoModelForCausalLM.from_pretrained(DIR), or a server" in said
    assert "PeftModel" not in said and "None" not in said
    with pytest.raises(UserError, match=r"--format fold: expected merged, lora\."):
        export(str(run), "fold", tmp_path / "out")


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_a_disk_that_refuses_leaves_nothing(format, run, tmp_path):
    said = tmp_path / "said"

    def limited():
        with said.open("w") as file, redirect_stderr(file), redirect_stdout(file):
            resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))  # stands for a full disk: no file grows beyond
            status = main(["export", str(run), "--format", format, "--output", str(tmp_path / "out")])
        sys.exit(status)

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join()
    assert child.exitcode == 2, said.read_text()
    last = said.read_text().splitlines()[-1]
    assert re.search(r"^cctuning: error: .*out: cannot be written: .*os error 27\); free some space", last), last
    assert list(tmp_path.iterdir()) == [said]


# -- a base from the hub ----------------------------------------------------------------------------------------------


def test_a_lora_belongs_to_the_revision_of_its_base(tmp_path):
    """The hub's cache has two revisions with other weights; a process of its own reads it."""
    cache = tmp_path / "cache" / "models--org--tiny"
    (cache / "refs").mkdir(parents=True)
    commits = {"main": "a" * 40, "old": "b" * 40}
    for (name, commit), spread in zip(commits.items(), (0.02, 0.5), strict=True):
        write_model(cache / "snapshots" / commit, initializer_range=spread)
        (cache / "refs" / name).write_text(commit)
    data = write_jsonl(tmp_path / "rows.jsonl", records())
    train = ["train", "--model", "org/tiny", "--revision", "old", "--data", data, "--tune", "lora", "--output_dir"]
    recipe = write_recipe(tmp_path / "recipe.yaml", connection="none", max_steps=1)
    commands = [
        [*train, tmp_path / "run", "--config", recipe],
        ["export", tmp_path / "run", "--format", "lora", "--output", tmp_path / "lora"],
        ["export", tmp_path / "run", "--format", "merged", "--output", tmp_path / "merged"],
    ]
    code = "import sys, json; from cctuning.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    argv = json.dumps([[str(one) for one in command] for command in commands])
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The base is revision 'old' of org/tiny: load that one" in done.stdout
    wrong, base = (AutoModelForCausalLM.from_pretrained(cache / "snapshots" / one) for one in commits.values())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(base, tmp_path / "lora")(IDS).logits
        torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
        assert (wrong(IDS).logits - wanted).abs().max() > 0.1
