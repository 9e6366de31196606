"""`cctuning generate` and the language of a prompt: one in the reference language runs as it did in training."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from cctuning.model.loading import load
from cctuning.serving.answering import Answerer, reference_language
from tests.cli.test_generate_export import answer
from tests.cli.world import done, refused, write_csv, write_jsonl
from tests.serving.world import make

LINES = [
    {"prompt": "x1 x2", "lang": "qaa", "english": "w1 w2"},
    {"prompt": "w3 w4 w5", "lang": "en", "english": "w9 w9"},  # the reference of such a row is not read
    {"prompt": "x6 x7 x8", "lang": "qaa", "english": None},
    {"prompt": "w2", "lang": "en", "english": None},
    {"prompt": "x9", "lang": "qaa", "english": "w9"},
]


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return make(tmp_path_factory.mktemp("gated"), save_strategy="no")


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    """An adaptive run whose matrix is far from the identity, so that taking part is seen in the answer."""
    run = make(tmp_path_factory.mktemp("adaptive"), connection="adaptive")
    connected = load(str(run)).connected
    connected.adaptive.matrix.weight.data *= 20
    connected.save_pretrained(run / "model", base_trained=True)
    return run


def answers(capsys, *argv) -> list[str]:
    return [json.loads(line)["answer"] for line in answer(capsys, *argv).splitlines()]


def test_an_english_prompt_takes_no_part_in_an_adaptive_connection(adaptive, capsys):
    told = answer(capsys, adaptive, "--prompt", "w3 w4 w5", "--lang", "en")
    assert told == answer(capsys, adaptive, "--prompt", "w3 w4 w5", "--bypass")
    answer(capsys, adaptive, "--prompt", "w3 w4 w5", "--lang", "en")
    assert "note:" not in capsys.readouterr().err
    connected = answer(capsys, adaptive, "--prompt", "w3 w4 w5", "--lang", "qaa")
    assert connected != told
    assert (
        answer(capsys, adaptive, "--prompt", "w3 w4 w5") == connected
    )  # nobody told: it is taken for one that borrows


def test_who_does_not_say_the_language_is_told_what_it_means(adaptive, gated, tmp_path, capsys):
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x1"}, {"prompt": "w1", "lang": "en"}])
    for argv, said in (
        ((adaptive, "--prompt", "x1"), True),
        ((adaptive, "--prompt", "x1", "--lang", "qaa"), False),
        ((adaptive, "--file", file), True),
        ((adaptive, "--file", file, "--lang", "qaa"), False),
        ((gated, "--prompt", "x1"), False),
    ):
        capsys.readouterr()
        done("generate", *argv, "--max_new_tokens", 1)
        note = [line for line in capsys.readouterr().err.splitlines() if "no language" in line]
        assert bool(note) is said, argv
        if said and "--file" in argv:
            assert "1 of 2 prompts have no language" in note[0]


@pytest.mark.parametrize("kind", ["gated", "adaptive"])
@pytest.mark.parametrize("reference", [False, True], ids=["alone", "with references"])
def test_a_file_of_several_languages_is_answered_row_by_row(kind, reference, request, tmp_path, capsys):
    """Batched together, English rows and rows without a reference among the others, each as by itself."""
    run = request.getfixturevalue(kind)
    file = write_jsonl(tmp_path / "in.jsonl", LINES)
    more = ("--reference", "english") if reference else ()
    together = answers(capsys, run, "--file", file, "--batch_size", 5, *more)
    for row, said in zip(LINES, together, strict=True):
        alone = ["--prompt", row["prompt"], "--lang", row["lang"]]
        if reference and row["english"] and row["lang"] != "en":
            alone += ["--reference", row["english"]]
        assert answer(capsys, run, *alone) == said, row


def test_the_languages_make_a_difference_in_that_file(adaptive, tmp_path, capsys):
    """Or the test before this one could not fail."""
    file = write_jsonl(tmp_path / "in.jsonl", LINES)
    blind = write_jsonl(tmp_path / "blind.jsonl", [{**row, "lang": "qaa"} for row in LINES])
    told, untold = (answers(capsys, adaptive, "--file", name) for name in (file, blind))
    assert [a != b for a, b in zip(told, untold, strict=True)] == [row["lang"] == "en" for row in LINES]


def test_lang_stands_for_a_column_that_is_not_there(adaptive, tmp_path, capsys):
    bare = write_csv(tmp_path / "in.csv", [{"prompt": row["prompt"]} for row in LINES])
    assert answers(capsys, adaptive, "--file", bare, "--lang", "en") == answers(
        capsys, adaptive, "--file", bare, "--bypass"
    )


def test_a_gated_model_answers_english_as_its_fold_does(gated, capsys):
    assert answer(capsys, gated, "--prompt", "w3 w4", "--lang", "en") == answer(capsys, gated, "--prompt", "w3 w4")


def test_another_reference_language(gated, tmp_path, capsys):
    """The file is read with the run's reference language: rows in English have references like any other."""
    run = shutil.copytree(gated, tmp_path / "run")
    config = run / "model" / "connection_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"reference_language": "fr"}))
    rows = [{"prompt": "w3 w4 w5", "lang": lang, "french": "x9 x9"} for lang in ("en", "fr")]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    live = answer(capsys, run, "--prompt", "w3 w4 w5", "--reference", "x9 x9")
    own = answer(capsys, run, "--prompt", "w3 w4 w5")
    assert live != own
    assert answers(capsys, run, "--file", file, "--reference", "french") == [live, own]


def test_bad_requests_are_refused(gated, capsys):
    base = gated.parent / "base"
    for argv, pattern in (
        ((base, "--prompt", "x1", "--lang", "en"), "--lang: .* has no connection"),
        ((gated, "--prompt", "w1", "--lang", "en", "--reference", "w2"), "has no other reference"),
    ):
        assert re.search(pattern, refused(capsys, "generate", *argv))


def test_the_reference_language_is_read_without_the_weights(gated, adaptive):
    assert reference_language(str(gated)) == reference_language(str(adaptive)) == "en"
    assert reference_language(str(gated.parent / "base")) is None


def test_answers_keep_their_order_whatever_the_batches(adaptive):
    answerer = Answerer(load(str(adaptive)), batch_size=2, max_new_tokens=4)
    prompts, references = [row["prompt"] for row in LINES], [row["english"] for row in LINES]
    languages = [row["lang"] for row in LINES]
    together = answerer(prompts, references, languages=languages)
    back = answerer(prompts[::-1], references[::-1], languages=languages[::-1])
    assert together == back[::-1]


def test_what_the_reader_noticed_in_a_file_is_printed(gated, tmp_path, capsys):
    rows = [{"prompt": "x1", "lang": "qaa", "context": "w5"}]
    done("generate", gated, "--file", write_jsonl(tmp_path / "in.jsonl", rows))
    assert "column not read, although its name suggests context" in capsys.readouterr().err
    done("generate", gated, "--file", write_jsonl(tmp_path / "bare.jsonl", [{"prompt": "x1", "lang": "qaa"}]))
    assert "note:" not in capsys.readouterr().err
