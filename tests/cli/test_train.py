"""`cctuning train`: from a recipe to a run directory that repeats, resumes and is never overwritten."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cctuning.training import run as training_run
from cctuning.training.directory import library_log
from tests.cli.world import (
    done,
    metrics,
    records,
    refused,
    run_json,
    same_weights,
    write_csv,
    write_jsonl,
    write_parquet,
    write_recipe,
)


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


def test_options_without_effect_are_said(tmp_path, recipe, capsys):
    flags = ["--connection", "none", "--align_weight", 3, "--lora_rank", 4]
    done("train", "--config", recipe, "--output_dir", tmp_path / "run", *flags)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "note: lora_rank: no effect with tune: full." in notes
    assert any("align_weight: no effect with connection: none" in note for note in notes)


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
