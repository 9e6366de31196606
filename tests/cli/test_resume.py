"""`cctuning train`: a run that was cut off is continued as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transformers import TrainerCallback

from cctuning.cli import main
from cctuning.training import run as training_run
from tests.cli.world import done, logged, metrics, refused, run_json, same_weights


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
