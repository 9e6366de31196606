"""`cctuning evaluate`: against lm-eval itself, against models whose score is known, on bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
import torch
from lm_eval.api.group import Group
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.cli import main
from cctuning.evaluation.models import Journal
from cctuning.evaluation.run import Options, evaluate, score
from cctuning.evaluation.suite_tasks import load_suite
from cctuning.evaluation.suites import FOLDERS
from tests.cli.world import write_model
from tests.conftest import shake
from tests.evaluation.data import COUNT, Stub, data_directory, write

REAL = Path(os.environ.get("CC_TUNING_DATA", Path(__file__).parents[3] / "shared" / "data")) / "benchmarks"


@pytest.fixture(scope="module")
def connected(tmp_path_factory, model) -> Path:
    """A model directory with a connection that does something."""
    made = ConnectedModel.attach(AutoModelForCausalLM.from_pretrained(model), ConnectionConfig("gated"))
    shake(made)
    folder = tmp_path_factory.mktemp("connected") / "model"
    write_model(folder, max_position_embeddings=512)
    made.save_pretrained(folder)
    return folder


def test_figures_are_lm_evals_own_to_the_last_digit(data, model, tmp_path):
    record = evaluate(str(model), tmp_path / "out", Options(data=str(data)))
    names = [name for name in record["tasks"] if name != "xcopa_en_local"]
    specs = []
    for name in names:
        folder = {"mgsm": "juletxara/mgsm", "xcopa": "cambridgeltl/xcopa", "xnli": "facebook/xnli"}
        folder |= {"xstorycloze": "juletxara/xstory_cloze", "xwinograd": "Muennighoff/xwinograd"}
        spec = {"task": name, "dataset_path": str(data / folder[name.split("_")[0]])}
        specs.append(spec | ({"training_split": None} if name.startswith(("xnli", "xstory")) else {}))
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_path=[root / folder for folder in FOLDERS], include_defaults=False)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    lm = HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=4)
    theirs = simple_evaluate(model=lm, tasks=[{"group": "g", "task": specs}], task_manager=manager)["results"]
    assert len(names) == 9
    for name in names:
        ours = dict(record["tasks"][name]["metrics"])
        if name.startswith(("xcopa", "xstory", "xnli")):
            assert ours.pop("acc_norm")  # lm-eval's task has none
        for metric, values in ours.items():
            chosen = "flexible-extract" if name.startswith("mgsm") else "none"
            assert values["value"] == theirs[name][f"{metric},{chosen}"], name
            assert values["stderr"] == theirs[name][f"{metric}_stderr,{chosen}"], name


@pytest.mark.parametrize("right", [True, False])
def test_a_perfect_model_gets_100_and_a_random_one_chance(right, data, tmp_path):
    known_models(data, right, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_the_same_in_every_task_and_language_of_the_real_benchmarks(right, tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"no benchmarks at {REAL}; set CC_TUNING_DATA")
    assert known_models(REAL, right, tmp_path) >= 22


def known_models(data: Path, right: bool, tmp_path: Path) -> int:
    """Score a stub on every task there; returns how many languages there were."""
    items, _ = load_suite("all", None, data)
    assert len({item.benchmark for item in items}) == 11
    record = {"tasks": {}, "model": {"name": "stub", "fingerprint": ""}, "settings": {"mode": "student"}}
    record |= {"versions": {}, "status": "stopped", "planned": []}
    (tmp_path / "samples").mkdir()
    chances: dict[str, list[float]] = {}
    for item in items:
        lm = Journal(Stub(item.task, right), tmp_path / "journal")
        lm.known, lm.path = {}, tmp_path / f"{item.name}.journal"
        score(item, lm, Options(limit=20), tmp_path, record)
        task = record["tasks"][item.name]
        value = task["metrics"][task["metric"]]["value"]
        if right:
            assert value == 1.0, item.name
        elif item.chance is None:
            assert value == 0.0, item.name
        else:
            assert abs(value - item.chance) < 4 * (item.chance * (1 - item.chance) / task["items"]) ** 0.5, item.name
            chances.setdefault(item.benchmark, []).append(value - item.chance)
    for name, off in chances.items():  # and in the mean of a benchmark's languages, where noise is less
        assert abs(sum(off) / len(off)) < 4 * 0.5 / (COUNT * len(off)) ** 0.5, name
    return len({item.language for item in items})


def test_samples_can_be_read_and_paired(data, model, tmp_path):
    evaluate(str(model), tmp_path / "out", Options(data=str(data), suite="all", languages=["sw"]))
    for path in (tmp_path / "out" / "samples").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["id"] for row in rows] == list(range(COUNT)), path.name
        assert all(
            {"hash", "prompt", "prompt_hash", "target", "response", "metrics"} == {*row} - {"id"} for row in rows
        )
    mgsm = (tmp_path / "out" / "samples" / "mgsm_direct_sw.jsonl").read_text().splitlines()
    assert all({*json.loads(line)["response"]} == {"said", "scored"} for line in mgsm)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| sw | " in table and "| chance |" in table and "33.3" in table
    first, second = table.split("## Length-normalised accuracy")
    second = second.split("Log-likelihood")[0]
    assert "XCOPA (accuracy)" in first and "MGSM" in first and "by length" not in first
    assert "XCOPA (acc. by length)" in second and "MGSM" not in second and "XWinograd" not in second


def test_length_normalised_accuracy_by_hand(data, tmp_path):
    """lm-eval's definition, on log-likelihoods set by hand, and no request more than accuracy needs."""
    items, _ = load_suite("source", ["sw"], data, ["XCOPA"])
    item = next(one for one in items if one.language == "sw")

    class Told(Stub):
        def loglikelihood(self, requests):
            self.calls += len(requests)
            return [((-6.0, -7.0)[request.idx], False) for request in requests]

    docs = [{"premise": "w1.", "question": "cause", "label": 1, "choice1": "w3", "choice2": "w3 w4"}] * 3
    docs.append({**docs[0], "label": 0})
    item.task.dataset["test"] = datasets.Dataset.from_list(docs)
    record = {"tasks": {}, "model": {"name": "stub", "fingerprint": ""}, "settings": {"mode": "student"}}
    record |= {"versions": {}, "status": "stopped", "planned": []}
    (tmp_path / "samples").mkdir()
    lm = Journal(Told(item.task, False), tmp_path / "journal")
    score(item, lm, Options(), tmp_path, record)
    found = record["tasks"][item.name]
    # The first choice is likelier (-6 > -7); per character the second is: -6 / 2 = -3 < -7 / 5 = -1.4. Gold: 2 2 2 1.
    assert found["metrics"]["acc"]["value"] == 0.25 and found["metrics"]["acc_norm"]["value"] == 0.75
    for metric in ("acc", "acc_norm"):  # sqrt(p (1 - p) / (n - 1)) = 0.25
        assert found["metrics"][metric]["stderr"] == pytest.approx(0.25)
    assert found["metric"] == "acc" and lm.asked == 2  # the four rows' choices are the same two


def test_one_item_has_no_standard_error(data, model, tmp_path):
    record = evaluate(str(model), tmp_path / "out", Options(data=str(data), benchmarks=["xcopa"], limit=1))
    assert [task["metrics"]["acc"]["stderr"] for task in record["tasks"].values()] == [None, None]
    assert ".0 ± - |" in (tmp_path / "out" / "results.md").read_text()


def test_two_figures_of_a_connected_model(data, connected, model, tmp_path):
    def samples(name, where=connected, **options):
        out = tmp_path / name
        evaluate(str(where), out, Options(data=str(data), benchmarks=["XStoryCloze"], **options))
        return (out / "samples" / "xstorycloze_sw.jsonl").read_text()

    def values(text):
        rows = [json.loads(line) for line in text.splitlines()]
        return torch.tensor([[one["loglikelihood"] for one in row["response"]] for row in rows])

    student = values(samples("student"))
    bypass, base = values(samples("bypass", mode="bypass")), values(samples("base", where=model))
    torch.testing.assert_close(bypass, base)
    assert (student - base).abs().max() > 1e-3


def refused(capsys, *argv) -> str:
    assert main(["evaluate", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "error:" in line]) == 1
    return lines[-1]


def test_bad_input_is_one_line(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    base = [model, "--data", data, "--output", out]
    assert "'xx'" in refused(capsys, *base, "--languages", "xx")
    assert "NOPE" in refused(capsys, *base, "--benchmarks", "NOPE")
    assert "no such directory" in refused(capsys, model, "--data", tmp_path / "none", "--output", out)
    assert "no connection" in refused(capsys, *base, "--bypass")
    assert "chat template" in refused(capsys, *base, "--chat")
    assert "limit" in refused(capsys, *base, "--limit", "0")
    assert not out.exists()


def test_a_broken_line_and_a_missing_file_are_named(model, tmp_path, capsys):
    data = data_directory(tmp_path / "data")
    path = data / "facebook/xnli/validation/sw.jsonl.gz"
    path.write_bytes(path.read_bytes()[:40])
    message = refused(capsys, model, "--data", data, "--output", tmp_path / "out")
    assert f"{path}:1: cannot be read from here on" in message
    ours = data / "paper/MKQA/sw.jsonl.gz"
    write(ours, [{"id": 0, "prompt": "w1", "answer": "w2"}, {"id": 1, "prompt": "w1", "answer": None}])
    argv = ("--data", data, "--suite", "paper", "--benchmarks", "paper MKQA", "--output", tmp_path / "out")
    assert f"{ours}: row 2: answer: missing" in refused(capsys, model, *argv)
    path.unlink()
    record = evaluate(str(model), tmp_path / "out", Options(data=str(data), benchmarks=["XNLI"]))
    assert any("sw" in note for note in record["notes"]) and list(record["tasks"]) == ["xnli_en"]


def test_nan_stops_and_what_is_done_is_kept(data, model, tmp_path, capsys, monkeypatch):
    whole = HFLM.loglikelihood

    def broken(self, requests, disable_tqdm=False):
        answers = whole(self, requests, disable_tqdm=disable_tqdm)
        sick = any(request.task_name == "xcopa_sw" for request in requests)
        return [(float("nan"), False)] * len(answers) if sick else answers

    monkeypatch.setattr(HFLM, "loglikelihood", broken)
    message = refused(capsys, model, "--data", data, "--output", tmp_path / "out")
    assert "xcopa_sw: item" in message and "nan" in message
    assert "xcopa_en_local" in json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]


def test_another_model_or_other_settings_do_not_mix(data, model, connected, tmp_path, capsys):
    base = ["--data", data, "--benchmarks", "XCOPA", "--output", tmp_path / "out"]
    assert main(["evaluate", str(model), *map(str, base)]) == 0
    assert "another model" in refused(capsys, connected, *base)
    assert "limit" in refused(capsys, model, *base, "--limit", "2")
    (tmp_path / "out" / "results.json").write_text("{")
    assert "results.json" in refused(capsys, model, *base)


def test_memory_that_runs_out_halves_the_batch(tmp_path):
    class Greedy(Stub):
        device = torch.device("cpu")
        sizes: list[int] = []

        def loglikelihood(self, requests):
            Greedy.sizes.append(self.batch_size_per_gpu)
            if self.batch_size_per_gpu > 2:
                raise RuntimeError("CUDA out of memory.")
            return [(-1.0, False)] * len(requests)

    inner = Greedy(Group("none"), right=False)
    inner.batch_size_per_gpu = 1
    journal = Journal(inner, tmp_path / "journal", batch_size=8)

    class Request:
        task_name, doc_id, args = "t", 0, ("a", "b")

    assert journal.loglikelihood([Request()]) == [(-1.0, False)]
    assert Greedy.sizes == [8, 4, 2] and journal.size == 2
