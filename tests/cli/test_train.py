"""`cctuning train`: from a recipe to a run directory that repeats, resumes and is never overwritten."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from cctuning.cli import main
from cctuning.training import run as training_run
from cctuning.training.directory import library_log
from tests.cli.world import (
    done,
    metrics,
    records,
    refused,
    run_json,
    write_csv,
    write_jsonl,
    write_model,
    write_parquet,
    write_recipe,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", records())


@pytest.fixture
def recipe(tmp_path, base, data):
    return write_recipe(tmp_path / "recipe.yaml", model=str(base), data=[str(data)])


def weights(run):
    files = [*sorted((run / "model").glob("*.safetensors"))]
    assert files
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def same_weights(one, other):
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def logged(run):
    """The steps' metrics."""
    return [line for line in metrics(run) if "loss" in line]


def test_a_run_says_all_that_is_needed_to_repeat_it(tmp_path, recipe, data, capsys):
    run = tmp_path / "run"
    options = ["--eval_data", data, "--eval_strategy", "steps", "--eval_steps", 3, "--transform_rank", 4]
    done("train", "--config", recipe, "--output_dir", run, *options)
    said = capsys.readouterr().out
    assert f"cctuning export {run} --format merged --output DIR" in said
    assert {"config.yaml", "run.json", "metrics.jsonl", "train.log", "model"} <= {p.name for p in run.iterdir()}
    record = run_json(run)
    assert record["status"] == "finished" and record["steps"] == 6 and record["seed"] == 42
    assert {"torch", "transformers", "trl", "peft", "cc-tuning", "python"} <= set(record["versions"])
    source = record["data"]["sources"][0]
    assert source["fingerprints"][str(data)].startswith("sha256:")
    assert record["data"]["rows"] == 24 and record["data"]["languages"] == {"qaa": 18, "en": 6}
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
    assert yaml.safe_load((run / "config.yaml").read_text())["transform_rank"] == 4
    assert json.loads((run / "model" / "connection_config.json").read_text())["connection"]["transform_rank"] == 4
    assert "arxiv.org/abs/2506.00875" in (run / "model" / "README.md").read_text()
    assert not list(run.rglob("*.bin")) and not list(run.rglob("*.partial"))

    again = tmp_path / "again"
    done("train", "--config", run / "config.yaml", "--output_dir", again)
    assert same_weights(run, again)
    assert metrics(again) == metrics(run)  # the evaluation too
    rename = {"output_dir": str(run)}
    assert yaml.safe_load((again / "config.yaml").read_text()) | rename == yaml.safe_load(
        (run / "config.yaml").read_text()
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_alone_is_uploaded(tmp_path, recipe, capsys, monkeypatch, fails):
    """Not the run, whose files name rows and paths; and nothing before it is complete."""
    made, uploaded = [], []

    class Hub:
        def create_repo(self, name, **options):
            made.append(name)
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, *, repo_id, folder_path, **options):
            if fails:
                raise ConnectionError("no route")
            uploaded.append((repo_id, Path(folder_path), {path.name for path in Path(folder_path).rglob("*")}))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr(training_run, "upload_folder", Hub().upload_folder)
    run = tmp_path / "run"
    options = ["--config", recipe, "--output_dir", run, "--push_to_hub", "true", "--max_steps", 2]
    done("train", *options, "--dry_run", "true")
    assert not made
    options += ["--save_strategy", "steps", "--save_steps", 1]
    if fails:
        assert f"not uploaded (no route); run hf upload me/run {run / 'model'}" in refused(capsys, "train", *options)
        assert run_json(run)["status"] == "finished"
        return
    done("train", *options)
    ((repo, folder, files),) = uploaded
    assert (repo, folder) == ("me/run", run / "model") and "model.safetensors" in files
    assert not files & {"run.json", "training_args.bin", "metrics.jsonl"}
    assert yaml.safe_load((run / "config.yaml").read_text())["push_to_hub"] is True


def test_every_file_format_gives_the_same_run(tmp_path, base):
    made = []
    for write, name in ((write_jsonl, "rows.jsonl"), (write_csv, "rows.csv"), (write_parquet, "rows.parquet")):
        run = tmp_path / name.replace(".", "-")
        recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=[str(write(tmp_path / name, records()))])
        done("train", "--config", recipe, "--output_dir", run, "--max_steps", 2)
        made.append(run)
    assert same_weights(made[0], made[1]) and same_weights(made[0], made[2])


def test_sources_are_mixed_with_their_weights(tmp_path, base, data, capsys):
    other = write_csv(tmp_path / "b.csv", [{"q": f"x{i} x{i + 1}", "en": f"w{i} w{i + 1}"} for i in range(10)])
    sources = [
        {"path": str(data), "weight": 0.5},
        {"path": str(other), "lang": "qab", "weight": 2, "columns": {"prompt": "q", "reference": "en"}},
    ]
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=sources)
    done("train", "--config", recipe, "--output_dir", tmp_path / "run")
    record = run_json(tmp_path / "run")
    assert [source["rows"] for source in record["data"]["sources"]] == [12, 20]
    note = f"{other}: no column is read as the response, so its rows train the alignment alone"
    assert capsys.readouterr().out.count(f"note: {note}") == 1  # a person sees it
    assert note in record["notes"][0]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"] == sources
    done("train", "--config", tmp_path / "run" / "config.yaml", "--output_dir", tmp_path / "again")
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_another_reference_language(tmp_path, base):
    lines = [{**line, "lang": {"en": "fr", "qaa": "ht"}[line["lang"]]} for line in records(reference="prompt_fr")]
    data = write_jsonl(tmp_path / "rows.jsonl", lines)
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(data), reference_language="fr")
    done("train", "--config", recipe, "--output_dir", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "model" / "connection_config.json").read_text())
    assert saved["reference_language"] == run_json(tmp_path / "run")["reference_language"] == "fr"
    assert run_json(tmp_path / "run")["data"]["languages"] == {"ht": 18, "fr": 6}


@pytest.mark.parametrize("tune", ["lora", "connection"])
def test_what_learns_beside_the_connection(tune, tmp_path, recipe, base):
    run = tmp_path / "run"
    done("train", "--config", recipe, "--output_dir", run, "--tune", tune, "--lora_rank", 4)
    names = {path.name for path in (run / "model").iterdir()}
    assert {"connection_config.json", "connection_model.safetensors"} <= names
    assert ("adapter_model.safetensors" in names) == (tune == "lora")
    assert json.loads((run / "model" / "connection_config.json").read_text())["base"]["trained"] is False
    if tune == "connection":
        before, after = load_file(base / "model.safetensors"), load_file(run / "model" / "model.safetensors")
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_rows_may_be_skipped_where_the_recipe_says_so(tmp_path, base):
    lines = records()
    lines[1]["prompt"] = ""
    del lines[4]["prompt_en"]
    lines[6]["prompt"] = "x1 " * 40  # too long: found in tokenisation
    data = write_jsonl(tmp_path / "rows.jsonl", lines)
    recipe = write_recipe(tmp_path / "r.yaml", model=str(base), data=str(data), bad_rows="skip", max_length=20)
    done("train", "--config", recipe, "--output_dir", tmp_path / "run")
    record = run_json(tmp_path / "run")
    assert record["data"]["rows"] == 22 and record["data"]["sources"][0]["skipped"] == 2
    assert [skip["origin"] for skip in record["data"]["skipped"]] == [f"{data}:2", f"{data}:5"]
    assert [skip["field"] for skip in record["data"]["skipped"]] == ["prompt", "prompt_en"]
    assert len(record["skipped_in_tokenisation"]) == 1
    assert record["skipped_in_tokenisation"][0].startswith(f"{data}:7: response: no tokens of it would be left")
    assert any("rows left out (bad_rows: skip): 3" in note for note in record["notes"])


def test_tensorboard_gets_events(tmp_path, recipe):
    done("train", "--config", recipe, "--output_dir", tmp_path / "run", "--report_to", "tensorboard")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


# -- cut off and continued ------------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def interrupted(monkeypatch):
    """Training that is interrupted in its fifth step."""

    class Trainer(training_run.CCTrainer):
        def __init__(self, **kwargs):
            super().__init__(**{**kwargs, "callbacks": [*kwargs["callbacks"], Interrupt()]})

    monkeypatch.setattr(training_run, "CCTrainer", Trainer)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_run_that_was_interrupted_continues_exactly(tune, tmp_path, recipe, capsys, monkeypatch):
    options = ["--save_strategy", "steps", "--save_steps", 3, "--tune", tune]
    done("train", "--config", recipe, "--output_dir", tmp_path / "whole", *options)
    run = tmp_path / "cut"
    with monkeypatch.context() as patched:
        interrupted(patched)
        assert main(["train", "--config", str(recipe), "--output_dir", str(run), *map(str, options)]) == 130
    assert run_json(run)["status"] == "running"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]  # the fourth step comes again
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    for verb in (["train", "--config", recipe, "--output_dir", run], ["generate", run, "--prompt", "x1"]):
        assert "--resume_from_checkpoint true" in refused(capsys, *verb)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    half = run / "checkpoint-4"  # killed while it was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    done("train", "--config", recipe, "--output_dir", run, *options, "--resume_from_checkpoint", "true")
    assert same_weights(tmp_path / "whole", run)
    assert logged(run) == logged(tmp_path / "whole")
    assert run_json(run)["checkpoint"] == str(run / "checkpoint-3")
    said = refused(capsys, "train", "--config", recipe, "--output_dir", run, "--resume_from_checkpoint", "true")
    assert "contains a finished run" in said


def test_a_resumed_run_has_the_time_of_all_its_legs(tmp_path, recipe, monkeypatch):
    options = ["--save_strategy", "steps", "--save_steps", 3]
    run = tmp_path / "cut"
    with monkeypatch.context() as patched:
        interrupted(patched)
        assert main(["train", "--config", str(recipe), "--output_dir", str(run), *map(str, options)]) == 130
    times = [json.loads(line)["total_runtime"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(times) == 4 and times == sorted(times) and times[0] > 0
    state = run / "checkpoint-3" / "trainer_state.json"
    kept = json.loads(state.read_text())
    for line in kept["log_history"]:  # the fourth step was lost
        line["total_runtime"] = 1000.0 * line["step"]
    state.write_text(json.dumps(kept))
    done("train", "--config", recipe, "--output_dir", run, *options, "--resume_from_checkpoint", "true")
    assert 3000 <= run_json(run)["seconds"] < 3900
    times = [json.loads(line)["total_runtime"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert times[:3] == [1000, 2000, 3000] and times == sorted(times) and 3000 <= times[-1] < 3900


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "connection_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "config.json",
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_taken(name, tmp_path, recipe, capsys, monkeypatch):
    options = ["--save_strategy", "steps", "--save_steps", 1]
    done("train", "--config", recipe, "--output_dir", tmp_path / "whole", *options)
    run = tmp_path / "cut"
    with monkeypatch.context() as patched:
        interrupted(patched)
        assert main(["train", "--config", str(recipe), "--output_dir", str(run), *map(str, options)]) == 130
    newest = max(run.glob("checkpoint-*"))
    file = newest / name
    if name == "scheduler.pt":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = refused(
        capsys, "train", "--config", recipe, "--output_dir", run, *options, "--resume_from_checkpoint", newest
    )
    assert f"incomplete: {name} is missing or damaged" in said
    done("train", "--config", recipe, "--output_dir", run, *options, "--resume_from_checkpoint", "true")
    assert f"note: {newest.name} is skipped: {name} is missing or damaged." in capsys.readouterr().out
    assert same_weights(tmp_path / "whole", run)


def test_options_without_effect_are_said(tmp_path, recipe, capsys):
    flags = ["--connection", "none", "--align_weight", 3, "--lora_rank", 4]
    done("train", "--config", recipe, "--output_dir", tmp_path / "run", *flags)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "note: lora_rank: no effect with tune: full." in notes
    assert any("align_weight: no effect with connection: none" in note for note in notes)


def test_a_run_cut_off_before_its_first_checkpoint_starts_anew(tmp_path, recipe, monkeypatch):
    run = tmp_path / "cut"
    with monkeypatch.context() as patched:
        interrupted(patched)
        assert main(["train", "--config", str(recipe), "--output_dir", str(run)]) == 130
    done("train", "--config", recipe, "--output_dir", run, "--resume_from_checkpoint", "true")
    assert [line["step"] for line in metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_before_it_was_called_finished_can_be_finished(tmp_path, recipe):
    run = tmp_path / "run"
    done("train", "--config", recipe, "--output_dir", run)
    (run / "run.json").write_text(json.dumps({**run_json(run), "status": "running"}))
    (run / ".model.partial").mkdir()
    done("train", "--config", recipe, "--output_dir", run, "--resume_from_checkpoint", "true")
    assert run_json(run)["status"] == "finished" and not (run / ".model.partial").exists()
    assert len([line for line in metrics(run) if "loss" in line]) == 6


def test_resuming_with_other_options_is_said(tmp_path, recipe, capsys, monkeypatch):
    run = tmp_path / "cut"
    options = ["--save_strategy", "steps", "--save_steps", "3"]
    with monkeypatch.context() as patched:
        interrupted(patched)
        assert main(["train", "--config", str(recipe), "--output_dir", str(run), *options]) == 130
    options += ["--resume_from_checkpoint", "true"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(capsys, "train", "--config", recipe, "--output_dir", run, *options, "--transform_rank", 2)
    assert "has another transform_rank, and its checkpoints do not fit" in said
    said = refused(capsys, "train", "--config", recipe, "--output_dir", run, *options[:-1], run / "checkpoint-9")
    assert "checkpoint-9: no such directory" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done("train", "--config", recipe, "--output_dir", run, *options, "--seed", 7)
    assert "note: resumed with options that differ from the original run's: seed." in capsys.readouterr().out


def test_a_killed_process_continues_exactly(tmp_path, recipe):
    options = ["--max_steps", "60", "--save_strategy", "steps", "--save_steps", "10"]
    done("train", "--config", recipe, "--output_dir", tmp_path / "whole", *options)
    run = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "cctuning", "train", "--config", recipe, "--output_dir", run, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (run / "checkpoint-10" / "trainer_state.json").is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if run_json(run)["status"] == "finished":
        pytest.skip("the machine was quicker than the signal")
    done("train", "--config", recipe, "--output_dir", run, *options, "--resume_from_checkpoint", "true")
    assert same_weights(tmp_path / "whole", run)


def test_a_finished_run_is_not_overwritten(tmp_path, recipe, capsys):
    run = tmp_path / "run"
    done("train", "--config", recipe, "--output_dir", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert f"output_dir: {run} contains a finished run" in refused(
        capsys, "train", "--config", recipe, "--output_dir", run
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = refused(capsys, "train", "--config", recipe, "--output_dir", tmp_path / "mine")
    assert "not empty and contains no run" in said
    said = refused(capsys, "train", "--config", recipe, "--output_dir", tmp_path / "mine" / "notes.txt")
    assert "is a file" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_second_recipe_overrides_the_first_and_flags_override_both(tmp_path):
    from cctuning import CCConfig, ConnectionConfig
    from cctuning.cli.options import parse
    from cctuning.training.options import RunOptions

    first, second = tmp_path / "model.yaml", tmp_path / "method.yaml"
    first.write_text("model: m\ntransform_rank: 4\nscope: response\noutput_dir: out\n")
    second.write_text("transform_rank: 8\nscope: all\n")
    flags = ["--config", str(first), "--config", str(second), "--transform_rank", "16"]
    options, connection, args = parse("t", "", (RunOptions, ConnectionConfig, CCConfig), flags)
    assert (options.model, connection.transform_rank, connection.scope, args.output_dir) == ("m", 16, "all", "out")


def test_warnings_of_a_run_are_shown_and_logged(tmp_path, capfd, monkeypatch):
    """A logger that writes to the file alone would no longer show its warnings: Python shows those of no handler."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, which a command line does not have
    with library_log(tmp_path / "train.log"):
        logging.getLogger("cctuning.training.callbacks").warning("it does not fall")
        logging.getLogger("peft.tuners").warning("it is not there")
        logging.getLogger("cctuning.training").info("recorded")
    assert capfd.readouterr().err == "warning: it does not fall\nwarning: it is not there\n"
    assert "it does not fall" in (tmp_path / "train.log").read_text()
    with library_log(None):  # a process that is not the first
        logging.getLogger("cctuning").warning("again")
    logging.getLogger("cctuning").warning("after")
    assert capfd.readouterr().err == "after\n"
