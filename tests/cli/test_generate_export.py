"""`cctuning export` and `cctuning generate`: what a run becomes, and that it answers as it was trained to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.cli import main
from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.model.loading import load
from cctuning.serving.answering import Answerer
from tests.cli.world import done, refused, write_jsonl
from tests.serving.world import make, make_turns
from tests.training.toys import tokenizer

IDS = torch.arange(6, 18)[None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs, each trained when a test first asks for it."""
    made = {}
    kinds = {
        "full": {"save_strategy": "steps", "save_steps": 3},
        "lora": {"tune": "lora", "save_strategy": "steps", "save_steps": 3},
        "connection": {"tune": "connection"},
        "plain": {"connection": "none"},
        "chat": {"chat": True},
        "adaptive": {"connection": "adaptive"},
        "response": {"scope": "response"},
    }

    def run(name):
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp(name), **kinds[name])
        return made[name]

    return run


def answer(capsys, *argv):
    capsys.readouterr()
    done("generate", *argv, "--max_new_tokens", 8)
    return capsys.readouterr().out.strip()


# -- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora", "connection", "plain"])
def test_fold_is_a_plain_checkpoint_with_the_same_logits(kind, runs, tmp_path, capsys):
    run = runs(kind)
    done("export", run, "--format", "merged", "--output", tmp_path / "fold")
    said = capsys.readouterr().out
    assert f"written: {tmp_path / 'fold'}" in said and "load it: AutoModelForCausalLM.from_pretrained(DIR), or" in said
    assert "old name" not in said
    loaded = load(str(run))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "fold").eval()
    expected = (loaded.connected or loaded.model)(IDS).logits
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "fold").eos_token == "<end>"
    names = {path.name for path in (tmp_path / "fold").iterdir()}
    assert not [name for name in names if "connection" in name or "adapter" in name]
    assert plain.generation_config.eos_token_id == 1
    assert answer(capsys, tmp_path / "fold", "--prompt", "x1 x2") == answer(capsys, run, "--prompt", "x1 x2")


@pytest.mark.parametrize("kind", ["lora", "connection"])
def test_lora_belongs_to_the_base_that_was_trained(kind, runs, tmp_path, capsys):
    run = runs(kind)
    done("export", run, "--format", "lora", "--output", tmp_path / "lora")
    base = str(run.parent / "base")
    assert repr(base) in capsys.readouterr().out
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(IDS).logits, load(str(run)).connected(IDS).logits, rtol=1e-4, atol=1e-4)
    assert answer(capsys, tmp_path / "lora", "--prompt", "x1 x2") == answer(capsys, run, "--prompt", "x1 x2")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_checkpoint_is_exported_like_a_run(kind, runs, tmp_path):
    """Also of a run that has not finished, whose record lacks what is written at its end."""
    run = shutil.copytree(runs(kind), tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    ended = ("steps", "seconds", "alignment")
    kept = {key: value for key, value in record.items() if key not in ended} | {"status": "running"}
    (run / "run.json").write_text(json.dumps(kept))
    checkpoint = run / "checkpoint-3"
    done("export", checkpoint, "--format", "merged", "--output", tmp_path / "fold")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "fold").eval()
    torch.testing.assert_close(plain(IDS).logits, load(str(checkpoint)).connected(IDS).logits, rtol=1e-4, atol=1e-4)


def test_fold_in_another_dtype(runs, tmp_path):
    done("export", runs("full"), "--format", "merged", "--output", tmp_path / "fold", "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "fold", dtype="auto").dtype == torch.bfloat16


def test_what_cannot_be_exported_is_refused(runs, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    out = tmp_path / "out"
    refusals = [
        (runs("full"), "lora", out, "the base's own weights are trained.*--format merged"),
        (runs("plain"), "lora", out, "has no connection and no LoRA to export as a LoRA"),
        (
            runs("adaptive"),
            "merged",
            out,
            "cannot be merged: connection: adaptive runs the prompt twice",
        ),
        (runs("response"), "merged", out, "cannot be merged: scope: response acts at some positions"),
        (runs("full"), "merged", there, "exists already"),
        (tmp_path / "none", "merged", out, "no such directory"),
        (there, "merged", out, "expected a run or a model"),
    ]
    for run, format, output, pattern in refusals:
        said = refused(capsys, "export", run, "--format", format, "--output", output)
        assert re.search(pattern, said), said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["there"] and not list(there.iterdir())
    assert "invalid choice: 'gguf'" in refused(capsys, "export", runs("full"), "--format", "gguf", "--output", out)
    said = refused(capsys, "export", runs("full"), "--format", "merged", "--output", out, "--dtype", "float7")
    assert "dtype: 'float7'" in said


# -- generate -------------------------------------------------------------------------------------------------------


def test_answers_of_a_run_its_bypass_and_its_live_connection_differ(runs, capsys):
    run = runs("full")
    alone = answer(capsys, run, "--prompt", "x1 x2 x3")
    live = answer(capsys, run, "--prompt", "x1 x2 x3", "--reference", "w1 w2 w3")
    bypass = answer(capsys, run, "--prompt", "x1 x2 x3", "--bypass")
    assert alone not in (live, bypass)
    loaded = load(str(run))
    ids = torch.tensor([Encoder(loaded.tokenizer).prompt_ids("x1 x2 x3")])
    plain = loaded.connected.unload().generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=1)
    assert loaded.tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True) == bypass
    assert answer(capsys, run.parent / "base", "--prompt", "x1")  # anybody's model
    done("generate", runs("adaptive"), "--prompt", "x1", "--reference", "w1")
    assert answer(capsys, run / "checkpoint-3", "--prompt", "x1")


def test_an_answer_ends_where_the_model_has_no_more_positions(runs, capsys):
    run = runs("full")
    capsys.readouterr()  # of the training, where this is the first test to want the run
    done("generate", run, "--prompt", "x1 " * 126, "--max_new_tokens", 8)
    assert len(capsys.readouterr().out.split()) <= 2


def test_a_file_of_prompts(runs, tmp_path, capsys):
    run = runs("full")
    prompts = [f"x{i} " * (1 + i % 3) for i in range(5)]
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": prompt, "english": "w3 w4"} for prompt in prompts])
    lines = [json.loads(line) for line in answer(capsys, run, "--file", file, "--batch_size", 2).splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert [line["answer"] for line in lines] == [answer(capsys, run, "--prompt", prompt) for prompt in prompts]

    turns = [{"role": role, "content": text} for role, text in (("user", "x1"), ("assistant", "x2"), ("user", "x3"))]
    rows = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns, "language": "sw"}, {"messages": turns[:1]}])
    found = [json.loads(line) for line in answer(capsys, runs("chat"), "--file", rows).splitlines()]
    assert found[0] == {"lang": "sw", "prompt": turns, "answer": found[0]["answer"]}
    assert found[1] == {"prompt": turns[:1], "answer": found[1]["answer"]}

    out = tmp_path / "out.jsonl"
    done("generate", run, "--file", file, "--reference", "english", "--max_new_tokens", 8, "--output", out)
    live = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    assert live[0] == answer(capsys, run, "--prompt", prompts[0], "--reference", "w3 w4")
    before = out.read_text()
    assert "exists already" in refused(capsys, "generate", run, "--file", file, "--output", out)
    assert out.read_text() == before


def test_the_prompt_is_rendered_as_in_training(runs):
    loaded = load(str(runs("chat")))
    answerer = Answerer(loaded)
    assert answerer.chat
    trained = Encoder(loaded.tokenizer, chat=True).encode(
        [{"prompt": "x1 x2", "response": "x3", "reference": "w1 w2"}]
    )
    prompt = [token for token, label in zip(trained[0]["input_ids"], trained[0]["labels"], strict=True) if label < 0]
    assert answerer.prompt_ids("x1 x2") == prompt
    assert answerer.prompt_ids("w1 w2") == trained[0]["reference_input_ids"]
    assert loaded.tokenizer.decode(Answerer(loaded, system="x5").prompt_ids("x1")).split()[:2] == ["<system>", "x5"]


def test_a_model_trained_without_the_template_is_asked_without(tmp_path, capsys):
    run = make(tmp_path, chat=True, save_strategy="steps", save_steps=3)
    config = tmp_path / "no-chat.yaml"
    config.write_text((run / "config.yaml").read_text() + "chat: false\n")
    done("train", "--config", config, "--output_dir", tmp_path / "bare")
    for path, chat in ((run, True), (tmp_path / "bare", False), (tmp_path / "bare" / "model", False)):
        assert Answerer(load(str(path))).chat is chat
    assert Answerer(load(str(run / "checkpoint-3"))).chat is True


def test_answers_are_generated_on_the_accelerator(runs, monkeypatch):
    """As `evaluate` scores; the device `meta` stands for one."""
    loaded = load(str(runs("lora")))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert Answerer(loaded).loaded.model.device.type == "meta"

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(UserError, match="does not fit on the accelerator"):
        Answerer(loaded)


def test_two_bos_are_never_written():
    made = tokenizer(chat=True)
    made.add_special_tokens({"bos_token": "<bos>"})
    made.chat_template = "<bos>" + made.chat_template
    loaded = SimpleNamespace(tokenizer=made, run={}, connected=None, model=torch.nn.Linear(1, 1))
    for chat, prompt in ((True, "x1"), (False, "x1"), (False, "<bos> x1")):
        from cctuning.serving.answering import encoder_of

        ids = encoder_of(loaded.tokenizer, loaded.run, chat).prompt_ids(prompt)
        assert ids.count(made.bos_token_id) <= 1, (chat, prompt)


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """A run on a base whose template ends a turn with <turn>, not its eos; trained to answer with one word."""
    folder = tmp_path_factory.mktemp("turns")
    make_turns(folder)
    done("export", folder / "run", "--format", "merged", "--output", folder / "fold")
    return folder


def test_generation_stops_where_the_template_ends_a_turn(turns, capsys):
    loaded = load(str(turns / "run"))
    turn = loaded.tokenizer.convert_tokens_to_ids("<turn>")
    assert loaded.tokenizer.eos_token_id != turn
    answerer = Answerer(loaded, max_new_tokens=20)
    assert turn in answerer.options["eos_token_id"]
    ids, mask = answerer.encode(["x3"])
    tokens = loaded.connected.generate(ids, mask, **answerer.options)[0, ids.shape[1] :].tolist()
    assert tokens[-1] == turn and len(tokens) == 2
    assert answer(capsys, turns / "run", "--prompt", "x3") == "x7"
    assert answer(capsys, turns / "fold", "--prompt", "x3") == "x7"

    plain = AutoModelForCausalLM.from_pretrained(turns / "fold")  # as a server does: no word of ours
    assert turn in plain.generation_config.eos_token_id
    assert plain.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist() == tokens


def test_an_answer_that_is_cut_off_is_a_note_and_makes_no_labelled_row(turns, tmp_path, capsys):
    """The run answers with a word and the end of its turn: two tokens."""
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"x{n}"} for n in (1, 2, 3)])
    pairs = write_jsonl(tmp_path / "p.jsonl", [{"text": "y1", "text_en": "x1", "lang": "qab"}])
    for most, cut in ((1, True), (2, False), (20, False)):
        small = ("--max_new_tokens", most)
        done("generate", turns / "run", "--file", file, *small)
        assert ("note: 3 of 3 answers were cut off at --max_new_tokens 1" in capsys.readouterr().err) is cut
        label = ("label", turns / "run", "--parallel", pairs, "--output", tmp_path / f"{most}.jsonl", *small)
        if cut:
            assert "the answer is longer than --max_new_tokens" in refused(capsys, *label)
        else:
            done(*label)
            capsys.readouterr()
    loaded = load(str(turns / "run"))
    answerer = Answerer(loaded, max_new_tokens=3)
    answerer.stops = ([], "x9 x8")  # a template whose end of turn is ordinary text
    assert answerer._ended(loaded.tokenizer.encode("x7 x9 x8", add_special_tokens=False))
    assert not answerer._ended(loaded.tokenizer.encode("x7 x9 x7", add_special_tokens=False))


def test_a_turn_that_ends_in_plain_text_ends_the_answer_too(turns):
    loaded = load(str(turns / "run"))
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("<turn>", "x9 x8")
    answerer = Answerer(loaded)
    assert answerer.options["stop_strings"] == ["x9 x8"]


def test_bad_requests_are_refused(runs, tmp_path, capsys):
    run, base = runs("full"), runs("full").parent / "base"
    broken = tmp_path / "broken.csv"
    broken.write_text("prompt,lang\nx1,qaa\n,qaa\n")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    refusals = [
        ((base, "--prompt", "x1", "--reference", "w1"), "--reference: .* has no connection"),
        ((base, "--prompt", "x1", "--bypass"), "--bypass: .* has no connection"),
        ((run, "--prompt", "x1", "--bypass", "--reference", "w1"), "exclude each other"),
        ((run, "--prompt", ""), "has no tokens; give some text"),
        ((run, "--prompt", "x1 " * 128), "128 tokens, and the model has 128 positions; shorten it"),
        ((run, "--prompt", "x1", "--chat", "yes"), "no chat template"),
        ((run, "--prompt", "x1", "--system", "x2"), "--system"),
        ((run, "--prompt", "x1", "--max_new_tokens", "0"), "max_new_tokens: expected at least 1"),
        ((run, "--prompt", "x1", "--temperature", "-1"), "temperature"),
        ((run, "--prompt", "x1", "--temperature", "nan"), "temperature: expected 0 .* got nan"),
        ((run, "--prompt", "x1", "--temperature", "inf"), "temperature: expected 0 .* got inf"),
        ((run, "--prompt", "x1", "--reference", ""), "--reference: empty"),
        ((run, "--file", empty, "--reference", " "), "--reference: empty"),
        ((run, "--file", empty), r"empty\.jsonl: no prompt: it is empty"),
        ((run, "--prompt", "x1", "--dtype", "int7"), "dtype: 'int7'"),
        ((run, "--prompt", "x1", "--file", "f"), "not allowed with"),
        ((run,), "required"),
        ((run, "--prompt", "x1", "--output", tmp_path / "o"), "only with --file"),
        ((run, "--file", broken, "--output", tmp_path / "no" / "o"), "no directory"),
        ((run, "--file", broken), r"broken\.csv:3: prompt: the prompt is empty"),
        ((run, "--file", tmp_path / "none.jsonl"), "no such file"),
        ((run, "--file", broken, "--reference", "english"), "no column 'english'"),
        ((tmp_path / "none", "--prompt", "x1"), "no such directory"),
        ((broken, "--prompt", "x1"), "a file; expected a run"),
    ]
    for argv, pattern in refusals:
        said = refused(capsys, "generate", *argv)
        assert re.search(pattern, said), said


def test_a_base_of_a_relative_path_is_told_where_it_cannot_be_found(tmp_path, capsys, monkeypatch):
    run = make(tmp_path, tune="lora")
    path = run / "model" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "./base"}))
    monkeypatch.chdir(tmp_path)
    assert answer(capsys, run, "--prompt", "x1")
    done("export", run, "--format", "lora", "--output", tmp_path / "lora")
    assert "names its base by a local path" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "out"
    for argv in (("export", run, "--format", "merged", "--output", out), ("generate", run, "--prompt", "x1")):
        said = refused(capsys, *argv)
        assert "its base model './base' is neither a directory here" in said and "where training was started" in said
        assert f"base_model_name_or_path in {path}" in said and not out.exists()
    assert "dtype: 'int7'" in refused(capsys, "generate", run, "--prompt", "x1", "--dtype", "int7")


def test_a_process_says_one_line(runs, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cctuning",
        "export",
        runs("full"),
        "--format",
        "lora",
        "--output",
        tmp_path / "out",
    ]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 2 and not made.stdout
    assert made.stderr.startswith("cctuning: error: ") and len(made.stderr.splitlines()) == 1, made.stderr


def test_the_frame(capsys):
    assert main(["--version"]) == 0 and main(["--help"]) == 0 and main([]) == 2
    assert "Did you mean 'train'?" in refused(capsys, "trian")
