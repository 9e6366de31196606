"""A model that answers right scores 100 with every template, thinking or not; a run is asked as it was trained."""

from __future__ import annotations

import json

import pytest
import torch

from cctuning import UserError
from cctuning.cli import main
from cctuning.data import Encoder, load_rows
from cctuning.evaluation.run import Options, evaluate
from cctuning.model.loading import load
from cctuning.serving.answering import Answerer
from tests.cli.world import refused, run_json, write_jsonl, write_recipe
from tests.conftest import tiny_llama
from tests.data.test_chat import MARKS, TEMPLATES
from tests.data.test_encode import bpe

ROWS = [
    {"prompt": "Mji mkuu wa Kenya?", "response": "Nairobi.", "lang": "sw", "prompt_en": "The capital of Kenya?"},
    {"prompt": "Mji mkuu wa Uganda?", "response": "Kampala.", "lang": "sw", "prompt_en": "The capital of Uganda?"},
]
THOUGHT = "Mji\nni " + " ".join("qwertyuiopasdfghjklzxcvbnm")  # more tokens than an answer may have
BY_HEART = {"max_steps": 150, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant", "logging_steps": 50}


def base(path, name):
    made = bpe((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    made.add_tokens([*MARKS, "<｜end▁of▁sentence｜>"])
    model = tiny_llama(layers=2, max_position_embeddings=1024)
    model.resize_token_embeddings(len(made))
    model.save_pretrained(path)
    made.save_pretrained(path)
    return path


def train(tmp_path, name, rows=ROWS, **options):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model=str(base(tmp_path / "base", name)),
        data=[str(write_jsonl(tmp_path / "rows.jsonl", rows))],
        connection="none",
        **BY_HEART | options,
    )
    assert main(["train", "--config", str(recipe), "--output_dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def scored(tmp_path, run, **options):
    record = evaluate(str(run), tmp_path / "results", Options(rows=str(tmp_path / "rows.jsonl"), **options))
    return record["tasks"]["rows_sw"]["metrics"]["f1"]["value"], record


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "deepseek_r1_distill", "gptoss", "gemma3"])
def test_what_is_known_by_heart_scores_100(tmp_path, capsys, name):
    """With the README's commands alone: no --chat anywhere."""
    run = train(tmp_path, name)
    value, record = scored(tmp_path, run)
    assert value == 1.0, (tmp_path / "results" / "samples" / "rows_sw.jsonl").read_text()
    assert record["settings"]["chat"] is True and not any("answers are" in note for note in record["notes"])
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", ROWS[0]["prompt"]]) == 0
    assert capsys.readouterr().out.strip() == "Nairobi."


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss"])
def test_thinking_that_was_trained_is_cut_before_it_is_scored(tmp_path, name):
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"], "thinking": THOUGHT},
            ],
            "messages_en": [{"role": "user", "content": row["prompt_en"]}],
            "lang": "sw",
        }
        for row in ROWS
    ]
    run = train(tmp_path, name, rows)
    assert run_json(run)["thinking"] is True
    value, record = scored(tmp_path, run, thinking_tokens=256)
    assert value == 1.0, (tmp_path / "results" / "samples" / "rows_sw.jsonl").read_text()
    options = Options(rows=str(tmp_path / "rows.jsonl"), thinking_tokens=1)
    record = evaluate(str(run), tmp_path / "again", options)
    cut = record["tasks"]["rows_sw"]["metrics"]["f1"]["value"]
    assert cut == 0.0 and any("all 2 answers are empty" in note for note in record["notes"])


def test_answers_longer_than_the_models_context_are_an_error(tmp_path):
    """The default for thinking, 1024 tokens, in a model that holds as many."""
    rows = [{**row, "thinking": "Mji ni"} for row in ROWS]
    run = train(tmp_path, "qwen3", rows, max_steps=1)
    with pytest.raises(UserError, match=r"tokens do not fit into the model's context of 1024 .*--thinking_tokens"):
        scored(tmp_path, run)
    options = Options(rows=str(tmp_path / "rows.jsonl"), thinking_tokens=64)
    assert evaluate(str(run), tmp_path / "again", options)["settings"]["chat"] is True


def test_a_setting_that_is_not_trainings_is_a_note(tmp_path, capsys):
    run = train(tmp_path, "qwen3", max_steps=2)
    _, record = scored(tmp_path, run, chat=False)
    assert any("without the chat template; the run was trained with it" in note for note in record["notes"])
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", "Mji?", "--chat", "no", "--max_new_tokens", "2"]) == 0
    assert "note: prompts are rendered without the chat template" in capsys.readouterr().err
    thinking = ["--chat_template_kwargs", '{"enable_thinking": true}', "--max_new_tokens", "2"]
    assert main(["generate", str(run), "--prompt", "Mji?", *thinking]) == 0
    assert "note: thinking is on; in training it was off" in capsys.readouterr().err
    unread = ["--chat_template_kwargs", '{"enable_thought": true}', "--max_new_tokens", "2"]
    assert main(["generate", str(run), "--prompt", "Mji?", *unread]) == 0
    assert "the chat template does not read enable_thought: no effect" in capsys.readouterr().err
    assert "expected JSON" in refused(capsys, "generate", run, "--prompt", "a", "--chat_template_kwargs", "{")
    off = ("--chat", "no", "--chat_template_kwargs", '{"enable_thinking": true}')
    assert "only with the chat template, which is off" in refused(capsys, "generate", run, "--prompt", "a", *off)


def test_the_template_of_training_is_saved_with_its_arguments(tmp_path):
    run = train(tmp_path, "qwen3", max_steps=2, chat_template_kwargs={"enable_thinking": True})
    from cctuning.model.loading import load_tokenizer

    tokenizer = load_tokenizer(str(run / "model"))
    asked = [{"role": "user", "content": "x"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text.endswith("assistant\n") == Encoder(tokenizer, chat=True).thinks is True


def test_a_plain_model_is_asked_with_its_template_and_told_so(tmp_path):
    path = base(tmp_path / "base", "qwen3")
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    torch.manual_seed(0)
    _, record = scored(tmp_path, path)
    assert record["settings"]["chat"] is True
    assert any("it is given enable_thinking=False" in note for note in record["notes"])
    samples = (tmp_path / "results" / "samples" / "rows_sw.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prompt"].endswith("<think>\n\n</think>\n\n") for line in samples)


def test_generate_asks_with_the_context_of_each_row(tmp_path, capsys):
    path = base(tmp_path / "base", "qwen3")
    tools = json.dumps([{"name": "salio", "description": "d", "parameters": {"type": "object", "properties": {}}}])
    asked = {"prompt": "Salio?", "system": "Wewe ni benki.", "tools": tools, "lang": "sw"}
    rows = [asked, {"prompt": "Mji?", "lang": "sw"}]
    file = write_jsonl(tmp_path / "prompts.jsonl", rows)
    assert main(["generate", str(path), "--file", str(file), "--max_new_tokens", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    answerer = Answerer(load(str(path)), max_new_tokens=1)
    dataset, _ = load_rows([str(file)], require_reference=False)
    one, other = (answerer.tokenizer.decode(answerer.prompt_ids(row["prompt"], row)) for row in dataset)
    assert "Wewe ni benki." in one and '"name": "salio"' in one and "salio" not in other
