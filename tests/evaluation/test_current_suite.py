"""Suite `current`: its tasks are registered in the installed lm-eval, and run from local files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from cctuning.cli import main
from cctuning.errors import UserError
from cctuning.evaluation.run import Options, evaluate
from cctuning.evaluation.suite_tasks import load_suite
from cctuning.evaluation.suites import current
from tests.cli.world import write_model

LETTERS = "ABCD"


@pytest.mark.parametrize("one", current(), ids=lambda one: one.name)
def test_tasks_are_registered_with_the_data_set_and_the_metric(one):
    """In a sample of languages, since reading all files takes a minute."""
    assert (len(one.tasks) >= 15 and "en" in one.tasks) or one.name == "INCLUDE"
    for language in sorted(one.tasks)[:: max(1, len(one.tasks) // 3)]:
        manager = TaskManager(include_path=[one.files[language].parent], include_defaults=False)
        entry = manager.task_index[one.tasks[language]]
        config = entry.cfg
        metric, _, chosen = one.metric.partition(",")
        if entry.kind.name == "GROUP":
            (listed,) = (each for each in config["aggregate_metric_list"] if each["metric"] == metric)
            assert listed.get("filter_list", "none") == chosen
            assert listed["weight_by_size"]
            leaves = [each for each in manager.task_index.values() if each.kind.name == "TASK"]
            leaf = next(each for each in leaves if each.name.startswith(one.tasks[language])).cfg
        else:
            leaf = config
        assert leaf["dataset_path"].split("/")[1] == one.dataset.split("/")[1]  # some were moved to another owner
        assert metric in [each["metric"] for each in leaf["metric_list"]]
        assert chosen in [each["name"] for each in leaf.get("filter_list", [{"name": "none"}])]
        assert (one.chance is None) == (leaf["output_type"] == "generate_until")


def test_which_languages_there_are():
    tasks = {one.name: one.tasks for one in current()}
    assert tasks["Belebele"]["sw"] == "belebele_swh_Latn" and tasks["Belebele"]["zh-Hant"] == "belebele_zho_Hant"
    assert tasks["INCLUDE"]["mk"] == "include_base_44_north_macedonian"
    assert tasks["Global-PIQA"]["fr"] == "global_piqa_parallel_cloze_fra_latn_fran"
    assert tasks["AfriMGSM"]["sw"] == "afrimgsm_swa_prompt_1" and tasks["SIB-200"]["sw"] == "sib_swa_prompt_1"
    assert {"sw", "yo"} <= {*tasks["Global-MMLU Lite"]}
    assert {*tasks["Global-MMLU Lite"]} & {*tasks["Global-MMLU"]} == {"en"}
    assert not any("other" in code or "medical" in code for one in current() for code in one.tasks)
    assert {"en", "ig", "so"} <= {*tasks["Global-MMLU"]}


def dataset(folder: Path, languages: dict[str, list[dict]]) -> None:
    lines = ["---", "configs:"]
    for name, rows in languages.items():
        lines += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}.jsonl"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Three of the data sets, as the hub has them."""
    root = tmp_path_factory.mktemp("current")
    rows = [
        {"flores_passage": f"w{i}", "question": f"w{i + 1}", "correct_answer_num": str(1 + i % 4)}
        | {f"mc_answer{n}": f"w{n}" for n in range(1, 5)}
        for i in range(4)
    ]
    dataset(root / "facebook" / "belebele", {"eng_Latn": rows, "swh_Latn": rows, "tha_Thai": rows})
    rows = [{"question": f"w{i} w2", "answer": None, "answer_number": i} for i in range(3)]
    dataset(root / "masakhane" / "afrimgsm", {"eng": rows, "swa": rows})
    rows = [
        {"question": f"w{i}", "choices": "['a', 'b', 'c', 'd']", "answer": LETTERS[i], "subject": "geography"}
        for i in range(4)
    ]
    dataset(root / "masakhane" / "afrimmlu", {"eng": rows, "swa": rows})
    return root


def test_local_files_are_scored_generated_answers_last(files, model, tmp_path):
    options = Options(suite="current", data=str(files), languages=["sw"])
    record = evaluate(str(model), tmp_path / "out", options)
    assert list(record["tasks"]) == [
        *("belebele_eng_Latn", "belebele_swh_Latn"),
        *("afrimmlu_direct_eng_prompt_1", "afrimmlu_direct_swa_prompt_1"),
        *("afrimgsm_eng_prompt_1", "afrimgsm_swa_prompt_1"),
    ]
    assert {one["metric"] for one in record["tasks"].values()} == {"acc", "exact_match"}
    assert record["tasks"]["belebele_swh_Latn"]["language"] == "sw"
    assert any(note.startswith("SIB-200: no ") for note in record["notes"])


def test_languages_are_those_of_the_runs_and_several_models_are_compared(files, model, tmp_path, capsys):
    run = tmp_path / "tuned"
    other = write_model(run / "model", max_position_embeddings=512, initializer_range=0.5)
    record = {"status": "finished", "model": str(model), "reference_language": "en", "chat": False}
    record["data"] = {"languages": {"swa": 3, "en": 2, "xx-unknown": 1}}
    (run / "run.json").write_text(json.dumps(record))
    assert other.is_dir()
    argv = ["evaluate", run, "base", "--suite", "current", "--data", files, "--output", tmp_path / "out"]
    assert main([str(one) for one in argv]) == 0
    printed = capsys.readouterr().out
    assert "tuned against base, Belebele" in printed and "results: " in printed
    for name in ("tuned", "base"):
        kept = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert {one["language"] for one in kept["tasks"].values()} == {"en", "sw"}
    assert kept["model"]["name"] == str(model)  # what `base` stands for
    with pytest.raises(UserError, match="name some with --languages"):
        evaluate(str(model), tmp_path / "plain", Options(suite="current", data=str(files)))


def test_what_cannot_be_scored_is_found_before_the_first_model(files, model, tmp_path, capsys):
    def refused(*argv):
        assert main(["evaluate", *map(str, argv), "--data", str(files), "--output", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no such directory" in refused(model, tmp_path / "none", "--suite", "current", "--languages", "sw")
    assert "both would be called 'a'" in refused(f"a={model}", f"a={model}")
    assert "base stands for the base of the runs" in refused(model, "base")
    assert "--baseline c: expected one of a, b" in refused(f"a={model}", f"b={model}", "--baseline", "c")
    assert "has no connection" in refused(f"a={model}", f"b={model}", "--bypass")
    with pytest.raises(UserError, match="suite current has no 'eo'"):
        load_suite("current", ["eo"], files)
