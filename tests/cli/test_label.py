"""`cctuning label`: rows in other languages out of parallel text and a model's answers to its English side."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cctuning.cli.label import rows_of
from cctuning.serving.answering import Answerer
from tests.cli.world import done, refused, write_jsonl, write_model, write_recipe
from tests.serving.world import make

PAIRS = [{"text": f"x{i} x{i + 1}", "text_en": f"w{i} w{i + 1}", "lang": "qaa"} for i in range(1, 9)]
PAIRS += [{"text": f"y{i} y{i + 1}", "text_en": f"w{i} w{i + 1}", "lang": "qab"} for i in range(1, 5)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs, each trained when a test first asks for it."""
    made = {}

    def run(name):
        if name not in made:
            chat, kind = name.endswith("chat"), name.removesuffix("-chat")
            made[name] = make(tmp_path_factory.mktemp(name), chat=chat, connection=kind, save_strategy="no")
        return made[name]

    return run


@pytest.fixture
def any_length(monkeypatch):
    """The models of these tests hardly ever end an answer."""
    monkeypatch.setattr(Answerer, "_ended", lambda self, generated: True)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["none", "gated", "adaptive", "align-chat"])
@pytest.mark.parametrize("template", ["{text}", "w1 {text} w2"])
def test_rows_have_the_answers_that_generate_gives_in_english(name, template, runs, any_length, tmp_path, capsys):
    run = runs(name)
    file = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    small = ("--max_new_tokens", 4, "--batch_size", 3)
    done("label", run, "--parallel", file, "--output", tmp_path / "rows.jsonl", "--template", template, *small)
    said = capsys.readouterr().out
    rows = lines(tmp_path / "rows.jsonl")
    asked = [{"prompt": template.replace("{text}", pair["text_en"]), "lang": "en"} for pair in PAIRS]
    english = write_jsonl(tmp_path / "english.jsonl", asked)
    done("generate", run, "--file", english, "--output", tmp_path / "answers.jsonl", *small)
    answers = [line["answer"] for line in lines(tmp_path / "answers.jsonl")]
    whole, _ = rows_of(
        [{**pair, "reference": pair["text_en"]} for pair in PAIRS],
        dict(zip((row["prompt"] for row in asked), answers, strict=True)),
        template,
        "en",
    )
    assert whole and [{**row, "response": row["response"].strip()} for row in rows] == whole
    counts = Counter(row["lang"] for row in rows)
    assert f"{len(rows)} rows (qaa {counts['qaa']}" in said and "different answers, most often" in said


def test_the_rows_train_with_and_without_alignment(runs, any_length, tmp_path, capsys):
    """Also where an answer is the end of its English text: such a pair makes no row, which train would not take."""
    file = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    done("label", runs("none"), "--parallel", file, "--output", tmp_path / "rows.jsonl", "--max_new_tokens", 4)
    made = len(lines(tmp_path / "rows.jsonl"))
    english = write_jsonl(
        tmp_path / "en.jsonl", [{"prompt": f"w{i}", "response": "x1", "lang": "en"} for i in range(4)]
    )
    for kind in ("align", "none"):
        done(
            *("train", "--model", runs("none").parent / "base", "--data", english, tmp_path / "rows.jsonl"),
            *("--connection", kind, "--output_dir", tmp_path / kind, "--max_steps", 2, "--save_strategy", "no"),
            *("--use_cpu", "true", "--report_to", "none", "--per_device_train_batch_size", 4),
        )
        said = capsys.readouterr().out
        assert f"{made + 4} with an answer" in said
        assert kind == "none" or f"{made + 4} with a reference" in said


def test_the_side_in_the_reference_language_of_the_run_is_answered(any_length, tmp_path):
    rows = [{"prompt": f"x{i}", "response": f"x{i + 9}", "lang": "qaa"} for i in range(8)]
    data, run = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model=str(write_model(tmp_path / "base")),
        data=str(data),
        connection="none",
        reference_language="qaa",
    )
    done("train", "--config", recipe, "--output_dir", run)
    pairs = [{"text": f"w{i} w{i + 1}", "text_qaa": f"x{i} x{i + 1}", "lang": "en"} for i in range(1, 9)]
    file = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    done("label", run, "--parallel", file, "--output", tmp_path / "out.jsonl", "--max_new_tokens", 4)
    made = [(row["prompt"], row["prompt_qaa"], row["lang"]) for row in lines(tmp_path / "out.jsonl")]
    assert made and set(made) <= {(pair["text"], pair["text_qaa"], "en") for pair in pairs}


def test_pairs_that_make_no_row_are_counted():
    pairs = [
        {"text": "habari ya michezo", "reference": "sports news", "lang": "sw"},
        {"text": "habari", "reference": "it is about sports", "lang": "sw"},
        {"text": "kimya", "reference": "silence", "lang": "sw"},
        {"text": "hadithi", "reference": "a story", "lang": "sw"},
    ]
    answers = {"sports news": "sports", "it is about sports": "sports", "silence": "", "a story": None}
    rows, lost = rows_of(pairs, answers, "{text}", "en")
    assert rows == [{"prompt": "habari ya michezo", "response": "sports", "lang": "sw", "prompt_en": "sports news"}]
    assert sum(lost.values()) == 3 and lost["no answer"] == lost["the answer is longer than --max_new_tokens"] == 1


def test_only_answers_that_other_rows_have(runs, any_length, tmp_path, capsys):
    file, argv = write_jsonl(tmp_path / "pairs.jsonl", PAIRS), ("--max_new_tokens", 4)
    done("label", runs("none"), "--parallel", file, "--output", tmp_path / "all.jsonl", *argv)
    every = lines(tmp_path / "all.jsonl")
    one = every[0]["response"]
    left = [row for row in every if row["response"].strip() == one.strip()]
    assert 0 < len(left) < len(every)
    labels = write_jsonl(tmp_path / "english.jsonl", [{"prompt": "w1", "response": f" {one.strip()}", "lang": "en"}])
    argv += ("--answers", labels)
    done("label", runs("none"), "--parallel", file, "--output", tmp_path / "some.jsonl", *argv)
    assert lines(tmp_path / "some.jsonl") == left
    assert f"{len(every) - len(left)} (the answer is not in --answers)" in capsys.readouterr().err
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": "w1", "lang": "en"}])
    output = tmp_path / "none.jsonl"
    said = refused(capsys, "label", runs("none"), "--parallel", file, "--output", output, "--answers", asked)
    assert "has an answer" in said and not output.exists()


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)


def sentencepiece():
    """As Llama 2's: a space before the first word, which decoding strips."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made, trainers.BpeTrainer(show_progress=False)


@pytest.mark.parametrize("make_tokenizer", [byte_level, sentencepiece])
@pytest.mark.parametrize("answer", [" health", "health"])
def test_the_space_before_an_answer_is_kept(make_tokenizer, answer):
    """As in the rows that a base model was tuned on: `Topic:` and ` health`."""
    made, trainer = make_tokenizer()
    made.train_from_iterator(["Topic: health"] * 9, trainer)
    answerer = object.__new__(Answerer)
    answerer.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    answerer.thoughts = answerer.end = None
    answerer.strip = False
    prompt, whole = (made.encode(text).ids for text in ("Topic:", "Topic:" + answer))
    if whole[: len(prompt)] == prompt:
        assert answerer._answer(whole[len(prompt) - 1 :]) == answer
    else:
        assert answer == "health"  # the word after the mark is one token with it


def test_bad_input_is_one_line_before_the_model_is_loaded(tmp_path, capsys):
    file = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    argv = ("label", tmp_path / "nowhere", "--parallel", file, "--output")
    assert "expected {text} once" in refused(capsys, *argv, tmp_path / "o.jsonl", "--template", "Classify:")
    assert "exists already" in refused(capsys, *argv, file)
    assert "there is no directory" in refused(capsys, *argv, tmp_path / "no" / "o.jsonl")
    assert "cannot be written" in refused(capsys, *argv, tmp_path / f"{'o' * 245}.jsonl")
    assert "no such" in refused(capsys, *argv, tmp_path / "o.jsonl")
    assert "--parallel" in refused(capsys, "label", tmp_path, "--output", tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
