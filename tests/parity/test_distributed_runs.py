"""`cctuning train` as accelerate launches it: the same run as one process's, on disk too, killed and continued."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.world import SMALL, done, metrics, records, run_json, write_jsonl, write_model
from tests.families import build
from tests.training.toys import tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"
ALONE = ("--per_device_train_batch_size", 8, "--use_cpu", True)
ROWS = 21  # of 8 a step: the last of an epoch has 5, four of them on the first process


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base, rows, a recipe, and the run of one process that the others are held against."""
    path = tmp_path_factory.mktemp("distributed")
    base, rows = write_model(path / "base"), write_jsonl(path / "rows.jsonl", records(ROWS))
    recipe = {
        **SMALL,
        "use_cpu": False,
        "model": str(base),
        "data": str(rows),
        "save_strategy": "steps",
        "save_steps": 2,
    }
    (path / "unset.yaml").write_text(yaml.safe_dump(recipe))
    recipe["reference_weights"] = "current"  # what every engine can do
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pairs = [
        {"text": row["prompt"], "text_en": row["prompt_en"], "lang": "qu"} for row in records(150) if row["prompt_en"]
    ]
    english = [{"prompt": row["prompt"], "response": row["response"], "lang": "en"} for row in records(ROWS)]
    text, answered = write_jsonl(path / "pairs.jsonl", pairs), write_jsonl(path / "english.jsonl", english)
    aligned = {**recipe, "connection": "align", "parallel": str(text), "data": str(answered), "parallel_rows": 2}
    aligned |= {"layers": [0, 1], "align_negatives": 7, "bad_rows": "skip"}
    del aligned["reference_weights"]
    (path / "aligned.yaml").write_text(yaml.safe_dump(aligned))
    for tune in ("full", "lora"):
        alone(path, path / f"one-{tune}", "--tune", tune)
    return path


def alone(world: Path, run: Path, *options: object) -> None:
    """In this process, with the batch that the others divide."""
    done("train", "--config", world / "recipe.yaml", "--output_dir", run, *ALONE, *options)


def start(
    world: Path, engine: str, processes: int, run: Path, *options: object, recipe: str = "recipe.yaml"
) -> subprocess.Popen:
    """`accelerate launch … cctuning train`, with the configuration that is in the recipes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    config = CONFIGS / f"{engine}.yaml"
    if engine == "ddp":  # accelerate knows this one without accelerators
        config = world / "ddp.yaml"
        config.write_text((CONFIGS / "ddp.yaml").read_text() + "use_cpu: true\n")
        options = ("--use_cpu", True, *options)
    command += ["--config_file", config, "--mixed_precision", "no", "--main_process_port", "0"]
    command += ["-m", "tests.parity.launched", "train", "--config", world / recipe, "--output_dir", run]
    command += ["--per_device_train_batch_size", 8 // processes, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(world: Path, engine: str, processes: int, run: Path, *options: object, **named: str) -> str:
    """Run to the end; what was printed."""
    process = start(world, engine, processes, run, *options, **named)
    try:
        said, _ = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        stop(process)
        raise
    assert process.returncode == 0, said[-4000:]
    return said


def stop(process: subprocess.Popen) -> None:
    """End the launcher and what it started."""
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait()


def same(one: Path, other: Path, tolerance: float = 2e-4) -> None:
    """The same files, the same weights (Adam divides small differences by small numbers), the same curve."""
    names = {path.name for path in (one / "model").iterdir()}
    assert {path.name for path in (other / "model").iterdir()} == names
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        expected, found = load_file(one / "model" / name), load_file(other / "model" / name)
        assert expected.keys() == found.keys()
        for key in expected:
            missed = (found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-3)
            assert missed < tolerance, (name, key, missed)
    for expected_line, line in zip(metrics(one), metrics(other), strict=True):
        for key in {"step", "loss", "grad_norm", "learning_rate", "num_tokens"} & expected_line.keys():
            assert line[key] == pytest.approx(expected_line[key], rel=1e-4), (key, line)


def test_a_sharded_run_equals_one_process_and_folds(world, tmp_path):
    run = tmp_path / "run"
    launch(world, "fsdp2", 2, run)
    same(world / "one-full", run)
    assert run_json(run)["status"] == "finished"
    done("export", run, "--format", "merged", "--output", tmp_path / "fold")
    done("export", world / "one-full", "--format", "merged", "--output", tmp_path / "one")
    ids = torch.arange(8)[None]
    logits = [AutoModelForCausalLM.from_pretrained(tmp_path / name)(input_ids=ids).logits for name in ("fold", "one")]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


PACKING = ("--packing", True, "--max_length", 48, "--train_sampling_strategy", "random")


@pytest.mark.parametrize(
    ("engine", "tune", "options"),
    [
        ("ddp", "full", PACKING),
        ("fsdp2", "lora", ("--padding_free", True)),
        pytest.param("fsdp2", "full", PACKING, marks=pytest.mark.slow),
        pytest.param("ddp", "lora", ("--padding_free", True), marks=pytest.mark.slow),
    ],
)
def test_packed_rows_over_two_processes_equal_one_and_survive_resuming(engine, tune, options, world, tmp_path):
    """A step has the same bins whatever the number of processes, and each row comes once."""
    options = ("--tune", tune, *options)
    done("train", "--config", world / "aligned.yaml", "--output_dir", tmp_path / "one", *ALONE, *options)
    launch(world, engine, 2, tmp_path / "run", *options, recipe="aligned.yaml")
    same(tmp_path / "one", tmp_path / "run")
    cut_after_two(tmp_path / "run", tmp_path / "cut")
    launch(world, engine, 2, tmp_path / "cut", *options, "--resume_from_checkpoint", True, recipe="aligned.yaml")
    same(tmp_path / "one", tmp_path / "cut")


@pytest.mark.parametrize(
    ("engine", "tune", "first"),
    [
        ("fsdp2", "full", 0),
        ("ddp", "lora", 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("ddp", "full", 0), ("fsdp2", "lora", 0), ("zero2", "full", 0), ("zero3", "lora", 3))
        ),
    ],
)
def test_parallel_text_over_two_processes_equals_one_and_survives_resuming(engine, tune, first, world, tmp_path):
    """Each process records its share of the references, or all together if weights are sharded."""
    one, options = tmp_path / "one", ["--tune", tune, "--align_first", first]
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install deepspeed")
    done("train", "--config", world / "aligned.yaml", "--output_dir", one, *ALONE, *options)
    launch(world, engine, 2, tmp_path / "run", *options, recipe="aligned.yaml")
    same(one, tmp_path / "run")
    assert run_json(tmp_path / "run")["alignment"]["qu"]["held_out"]
    assert all("align_loss" in line for line in metrics(one) if "loss" in line)
    cut_after_two(tmp_path / "run", tmp_path / "cut")
    launch(world, engine, 2, tmp_path / "cut", *options, "--resume_from_checkpoint", True, recipe="aligned.yaml")
    same(one, tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "processes", "tune"),
    [
        ("ddp", 2, "full"),
        ("ddp", 4, "lora"),
        ("fsdp2", 2, "lora"),
        ("fsdp2", 4, "full"),
        ("zero2", 2, "full"),
        ("zero3", 2, "full"),
        ("zero3", 2, "lora"),
    ],
)
def test_several_processes_give_the_run_of_one(engine, processes, tune, world, tmp_path):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install deepspeed")
    launch(world, engine, processes, tmp_path / "run", "--tune", tune)
    same(world / f"one-{tune}", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "processes", "tune"),
    [("ddp", 2, "full"), ("ddp", 2, "lora"), ("fsdp2", 2, "lora"), ("fsdp2", 4, "full")],
)
def test_references_through_the_start_in_several_processes(engine, processes, tune, world, tmp_path):
    options = ("--tune", tune, "--reference_weights", "start", "--base_decay", 5)
    alone(world, tmp_path / "one", *options)
    launch(world, engine, processes, tmp_path / "several", *options)
    same(tmp_path / "one", tmp_path / "several")
    with pytest.raises(AssertionError):  # and it is another run than with references as the model trains
        same(world / f"one-{tune}", tmp_path / "one")


def test_the_start_is_the_default_of_sharded_weights_too_and_survives_resuming(world, tmp_path):
    """What is kept is where the run began, and not where it was continued from."""
    done("train", "--config", world / "unset.yaml", "--output_dir", tmp_path / "one", *ALONE)
    launch(world, "fsdp2", 2, tmp_path / "two", recipe="unset.yaml")
    same(tmp_path / "one", tmp_path / "two")
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["reference_weights"] == "start"
    cut_after_two(tmp_path / "one", tmp_path / "cut")
    launch(world, "fsdp2", 2, tmp_path / "cut", "--resume_from_checkpoint", True, recipe="unset.yaml")
    same(tmp_path / "one", tmp_path / "cut")


@pytest.mark.slow
def test_the_full_recipe_runs_as_docs_scale_says(world, tmp_path):
    """Recipe and configuration as they are (checkpointing, rows grouped by length, evaluation) but for bf16."""
    recipe, run = str(ROOT / "recipes" / "qwen2.5-7b-full.yaml"), tmp_path / "run"
    small = ("--model", world / "base", "--data", world / "rows.jsonl", "--eval_data", world / "rows.jsonl")
    small += ("--report_to", "none", "--max_length", 64, "--reference_weights", "start", "--bf16", False)
    process = start(world, "fsdp2", 2, run, *small, recipe=recipe)
    said, _ = process.communicate(timeout=150)
    assert process.returncode and "optim: adafactor needs whole matrices" in said, said
    launch(world, "fsdp2", 2, run, *small, "--optim", "adamw_torch_fused", recipe=recipe)
    assert run_json(run)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_tied_embeddings_stay_tied(tune, world, tmp_path):
    base = write_model(tmp_path / "base", tie_word_embeddings=True)
    options = ("--model", base, "--tune", tune)
    launch(world, "fsdp2", 2, tmp_path / "run", *options)
    alone(world, tmp_path / "one", *options)
    same(tmp_path / "one", tmp_path / "run")


@pytest.mark.slow
def test_a_family_that_is_converted_when_it_is_read_starts_all_the_same(world, tmp_path):
    base = tmp_path / "base"
    build("mixtral").save_pretrained(base)
    tokenizer().save_pretrained(base)
    launch(world, "fsdp2", 2, tmp_path / "run", "--model", base, "--tune", "lora")
    alone(world, tmp_path / "one", "--model", base, "--tune", "lora")
    expected, found = metrics(tmp_path / "one")[0], metrics(tmp_path / "run")[0]  # of the model as it was read
    assert (found["loss"], found["grad_norm"]) == pytest.approx((expected["loss"], expected["grad_norm"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_checkpoint_goes_from_sharded_to_unsharded_and_back(tune, world, tmp_path):
    cut_after_two(world / f"one-{tune}", tmp_path / "there")
    launch(world, "fsdp2", 2, tmp_path / "there", "--tune", tune, "--resume_from_checkpoint", True)
    same(world / f"one-{tune}", tmp_path / "there")
    cut_after_two(tmp_path / "there", tmp_path / "back", step=4)
    alone(world, tmp_path / "back", "--tune", tune, "--resume_from_checkpoint", True)
    same(world / f"one-{tune}", tmp_path / "back")


def cut_after_two(run: Path, copy: Path, step: int = 2) -> None:
    """A copy of `run` as it was when it had just written the checkpoint of `step`."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model"))
    for checkpoint in copy.glob("checkpoint-*"):
        if int(checkpoint.name[11:]) > step:
            shutil.rmtree(checkpoint)
    (copy / "run.json").write_text((copy / "run.json").read_text().replace('"finished"', '"running"'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "recipe", "options"),
    [
        ("ddp", "recipe.yaml", ("--train_sampling_strategy", "random")),
        ("ddp", "recipe.yaml", ("--train_sampling_strategy", "group_by_length")),
        ("fsdp2", "aligned.yaml", ("--train_sampling_strategy", "group_by_length")),
        ("fsdp2", "aligned.yaml", (*PACKING, "--max_steps", 6)),
    ],
)
def test_an_epoch_is_entered_in_its_middle_over_several_processes(engine, recipe, options, world, tmp_path):
    """Step 4 of 6 is the first of the second epoch's three: the order is one process's, and no row comes twice."""
    options = (*options, "--gradient_accumulation_steps", 1)
    done("train", "--config", world / recipe, "--output_dir", tmp_path / "one", *ALONE, *options)
    launch(world, engine, 2, tmp_path / "two", *options, recipe=recipe)
    same(tmp_path / "one", tmp_path / "two")
    cut_after_two(tmp_path / "two", tmp_path / "cut", step=4)
    launch(world, engine, 2, tmp_path / "cut", *options, "--resume_from_checkpoint", True, recipe=recipe)
    same(tmp_path / "one", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_rank_is_killed_and_the_job_continues_exactly(engine, world, tmp_path):
    options = ("--max_steps", 60, "--save_steps", 10, "--learning_rate", 1e-4)
    process = start(world, engine, 2, tmp_path / "cut", *options)
    deadline = time.monotonic() + 60
    try:
        while not (tmp_path / "cut" / "checkpoint-10" / "trainer_state.json").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.02)
        ranks = [child for child in psutil.Process(process.pid).children() if "launched" in " ".join(child.cmdline())]
        ranks[-1].send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    except BaseException:
        stop(process)
        raise
    assert process.returncode != 0, "the launcher must say that a rank was lost"
    assert run_json(tmp_path / "cut")["status"] == "running"
    launch(world, engine, 2, tmp_path / "cut", *options, "--resume_from_checkpoint", True)
    alone(world, tmp_path / "whole", *options)
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_configuration_for_accelerators_is_refused_without(engine, world, tmp_path):
    """accelerate itself starts the processes all the same, each for itself."""
    config = CONFIGS / f"{engine}.yaml"
    command = [sys.executable, "-m", "cctuning", "train", "--accelerate_config", config, "--num_processes", 2]
    command += ["--config", world / "recipe.yaml", "--output_dir", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode and "num_processes: 2 were launched" in done.stderr and not (tmp_path / "run").exists()
