"""Options of `evaluate` that meet: several models, reference languages, long prompts, sampled answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.cli import main
from cctuning.evaluation import user_tasks
from cctuning.evaluation.compare import compare
from cctuning.evaluation.models import AnsweringLM, ConnectedLM, Journal
from cctuning.evaluation.run import Options, evaluate
from cctuning.evaluation.suites import trained_languages
from cctuning.serving.answering import tokenizer_and_run
from cctuning.serving.engines import EXPORT_FILE
from tests.cli.world import refused, write_jsonl, write_model

ROWS = [
    {"prompt": "w1 w2", "response": "w3", "lang": "fr"},
    {"prompt": "x4 x5", "response": "x6 x7", "lang": "sw", "prompt_fr": "w1 w2"},
    {"prompt": "w8 w9", "response": "w3", "lang": "en", "prompt_fr": "w2 w1"},
]


def results(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def tuned(path: Path, base: Path, **record) -> Path:
    """A run directory as far as evaluate reads it."""
    write_model(path / "model", max_position_embeddings=512, initializer_range=0.5)
    known = {"status": "finished", "model": str(base), "reference_language": "en", "chat": False, "seed": 0}
    (path / "run.json").write_text(json.dumps(known | {"data": {"languages": {"sw": 1, "fr": 1}}} | record))
    return path


def test_all_models_are_scored_in_the_reference_language_of_the_runs(model, tmp_path, capsys):
    """Of a base and an export too, whose training, if any, is not recorded beside them."""
    rows, run = write_jsonl(tmp_path / "rows.jsonl", ROWS), tuned(tmp_path / "run", model, reference_language="fr")
    exported = write_model(tmp_path / "export", max_position_embeddings=512, initializer_range=0.4)
    (exported / EXPORT_FILE).write_text(json.dumps({"reference_language": "fr", "languages": ["sw"]}))
    argv = ["evaluate", run, "base", exported, "--rows", rows, "--languages", "sw", "--output", tmp_path / "out"]
    assert main([str(one) for one in argv]) == 0
    assert "French" in capsys.readouterr().out.split("run against base")[1]
    for name in ("run", "base", "export"):
        found = results(tmp_path / "out" / name)
        assert [*found["tasks"]] == ["rows_fr", "rows_sw"] and found["model"]["reference_language"] == "fr"
    assert trained_languages([tokenizer_and_run(str(exported))[1]]) == ["sw"]  # of suite `current`
    alone = evaluate(str(exported), tmp_path / "alone", Options(rows=str(rows), languages=["sw"]))
    assert [*alone["tasks"]] == ["rows_fr", "rows_sw"]


def test_what_makes_a_later_model_fail_is_found_before_the_first_is_scored(model, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    base = ["--rows", rows, "--output"]
    assert main([str(one) for one in ["evaluate", model, *base, tmp_path / "out" / "b", "--limit", 1]]) == 0
    message = refused(capsys, "evaluate", f"a={model}", f"b={model}", *base, tmp_path / "out")
    assert "holds results of other settings: limit" in message and not (tmp_path / "out" / "a").exists()
    one, other = (write_model(tmp_path / name, chat=True, max_position_embeddings=512) for name in ("one", "other"))
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<assistant> ", "<assistant> so: "))
    message = refused(capsys, "evaluate", one, other, *base, tmp_path / "chats")
    assert "prompts would be rendered differently" in message and "so: ' by other" in message
    assert not (tmp_path / "chats").exists()


@pytest.mark.parametrize("connected", [False, True])
def test_prompts_that_are_cut_are_counted(connected, tmp_path, capsys):
    """For answers that are generated and for likelihoods, of both kinds of model; `compare` says so too."""
    folder = write_model(tmp_path / "tiny", max_position_embeddings=64)
    rows = [*ROWS, {"prompt": "x1 " * 60, "response": "x6", "lang": "sw"}]
    if connected:
        plain, config = AutoModelForCausalLM.from_pretrained(folder), ConnectionConfig("gated", transform="nonlinear")
        made = ConnectedModel.attach(plain, config).eval()
        made.save_pretrained(folder)
    options = Options(rows=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    record = evaluate(str(folder), tmp_path / "out", options)
    assert {name: task["cut"] for name, task in record["tasks"].items()} == {"rows_en": 0, "rows_fr": 0, "rows_sw": 1}
    (note,) = (note for note in record["notes"] if "cut" in note)
    assert "rows_sw: 1 of 2 prompts do not fit" in note
    other = write_model(tmp_path / "other", max_position_embeddings=128)
    evaluate(str(other), tmp_path / "long", options)
    notes = compare([("a", tmp_path / "out"), ("b", tmp_path / "long")], draws=1000).notes
    assert [one for one in notes if "cut" in one] == [f"a: {note}"]
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lm = ConnectedLM(made, tokenizer) if connected else AnsweringLM(loaded, tokenizer)
    journal = Journal(lm, tmp_path / "journal", 2)
    asked = [("w1 w2", " w3"), ("w1 " * 70, " w3")]
    journal.loglikelihood([Instance("loglikelihood", {}, one, 0, metadata=("t", n, 1)) for n, one in enumerate(asked)])
    assert journal.cut == {("t", 1)}


class Drawing:
    """Another answer each time."""

    max_gen_toks = 256

    def __init__(self) -> None:
        self.given: list[dict] = []

    def generate_until(self, requests):
        self.given += [request.args[1] for request in requests]
        return [f"w{len(self.given) - place}" for place in range(len(requests))]


@pytest.mark.parametrize(("sampled", "answers"), [({"do_sample": True, "temperature": 0.7}, 3), ({}, 1)])
def test_repeats_of_a_task_that_samples_are_drawn_each(sampled, answers, tmp_path):
    requests = [Instance("generate_until", {}, ("w1", {"until": [], **sampled}), 0, metadata=("t", 0, 3))] * 3
    inner = Drawing()
    found = Journal(inner, tmp_path / "journal", 4).generate_until(requests)
    assert len({*found}) == len(inner.given) == answers
    again = Journal(Drawing(), tmp_path / "journal", 4)
    assert again.generate_until(requests) == found and again.asked == 0


def test_thinking_adds_to_the_length_under_each_of_its_names(tmp_path):
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        inner = Drawing()
        request = Instance("generate_until", {}, ("w1", {"until": ["w9"], name: 7}), 0, metadata=("t", 0, 1))
        Journal(inner, tmp_path / f"{name}.jsonl", 4, thinking=10).generate_until([request])
        (given,) = inner.given
        assert given["max_gen_toks"] == 17 and given["until"] == []
        assert {"max_new_tokens", "max_tokens"}.isdisjoint(given)


def test_a_connected_model_samples_where_the_task_says_so(model, tmp_path, monkeypatch):
    plain, config = AutoModelForCausalLM.from_pretrained(model), ConnectionConfig("gated", transform="nonlinear")
    made = ConnectedModel.attach(plain, config).eval()
    seen, generate = [], ConnectedModel.generate

    def watched(self, *args, **options):
        seen.append({name: options.get(name) for name in ("do_sample", "temperature", "top_k")})
        return generate(self, *args, **options)

    monkeypatch.setattr(ConnectedModel, "generate", watched)
    lm = ConnectedLM(made, AutoTokenizer.from_pretrained(model))
    for given in ({"do_sample": True, "temperature": 0.5, "top_k": 3}, {"do_sample": False}):
        request = Instance("generate_until", {}, ("w1", {"until": [], "max_gen_toks": 2, **given}), 0)
        lm.generate_until([request], disable_tqdm=True)
    assert seen == [
        {"do_sample": True, "temperature": 0.5, "top_k": 3},
        {"do_sample": False, "temperature": None, "top_k": None},
    ]


def test_a_group_that_names_no_filter_is_scored_by_its_mean(model, tmp_path, monkeypatch):
    """As lm-eval's own `mmlu` and others."""
    monkeypatch.setattr(user_tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    for name, count in (("own_a", 2), ("own_b", 4)):
        rows = [{"prompt": f"w{i} w2", "answer": "w5"} for i in range(count)]
        data = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\noutput_type: multiple_choice\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\ndoc_to_text: '{{{{prompt}}}}'\n"
            "doc_to_target: '{{answer}}'\ndoc_to_choice: [w5, w6]\n"
        )
    group = "group: own\ntask: [own_a, own_b]\naggregate_metric_list: [{metric: acc}]\n"
    (tmp_path / "own.yaml").write_text(group)
    record = evaluate(str(model), tmp_path / "out", Options(tasks=["own"], include_path=str(tmp_path)))
    (task,) = record["tasks"].values()
    lines = [json.loads(line) for line in (tmp_path / "out/samples/own.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(6)) and task["metric"] == "acc"
    assert task["metrics"]["acc"]["value"] == pytest.approx(sum(line["metrics"]["acc"] for line in lines) / 6)


def test_tasks_of_perplexity_are_an_error_before_anything_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(user_tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    data = write_jsonl(tmp_path / "text.jsonl", [{"text": "w1 w2"}])
    (tmp_path / "text.yaml").write_text(
        "task: own_text\noutput_type: loglikelihood_rolling\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list: [{metric: word_perplexity}]\n"
    )
    with pytest.raises(UserError, match="--tasks own_text: measures perplexity"):
        user_tasks.load_tasks(["own_text"], None, include_path=str(tmp_path))


def test_options_without_effect_are_told(model, tmp_path, capsys):
    tools = json.dumps([{"name": "salio", "description": "d", "parameters": {"type": "object", "properties": {}}}])
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {**ROWS[1], "tools": tools}])
    record = evaluate(str(model), tmp_path / "out", Options(rows=str(rows), thinking_tokens=9))
    left = f"1 of 2 rows (the first: {rows}:2): the chat template leaves out their tools."
    assert left in record["notes"]
    assert any(one.startswith("thinking_tokens: no effect") for one in record["notes"])
    argv = ("evaluate", model, "--rows", rows, "--output", tmp_path / "other")
    assert "has tasks for --tasks" in refused(capsys, *argv, "--include_path", tmp_path)


def test_settings_that_differ_are_noted_by_compare(model, tmp_path):
    rows = str(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    evaluate(str(model), tmp_path / "a", Options(rows=rows))
    evaluate(str(model), tmp_path / "b", Options(rows=rows, dtype="bfloat16", thinking_tokens=9))
    notes = compare([("a", tmp_path / "a"), ("base", tmp_path / "b")], draws=1000)
    assert notes.baseline == "base"  # wherever it stands
    assert "dtypes differ: a float32, base bfloat16." in notes.notes
    assert "thinking_tokens differ: a default, base 9." in notes.notes


def test_base_stands_for_one_directory_and_for_no_revision(model, tmp_path, capsys, monkeypatch):
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(model.parent)
    one, other = (
        tuned(tmp_path / "one", model),
        tuned(tmp_path / "other", Path(model.name)),
    )  # the same, by other paths
    argv = ["base", one, other, "--rows", rows, "--limit", 1, "--languages", "sw"]
    assert main(["evaluate", *map(str, argv), "--output", str(tmp_path / "out")]) == 0
    assert "other against base, own rows" in capsys.readouterr().out
    (one / "config.yaml").write_text("revision: abc\n")
    message = refused(capsys, "evaluate", *argv, "--output", tmp_path / "again")
    assert "trained from revision abc of" in message
