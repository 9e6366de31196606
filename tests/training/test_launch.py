"""Unsupported ways of running several processes raise an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from cctuning import CCConfig, CCTrainer
from cctuning.cli import main
from cctuning.errors import UserError
from cctuning.training.checks import check_engine, check_launch
from cctuning.training.directory import check_checkpoint
from tests.cli.world import refused
from tests.training.toys import model, rows, tokenizer


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_splitting_layers_or_rows_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}", "2")
    args = CCConfig(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(UserError, match=rf"{name}: 2 is not supported: .*--accelerate_config ddp"):
        CCTrainer(model(), args, train_dataset=rows(), processing_class=tokenizer())


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (1, "num_processes: 2 were launched, but accelerate finds no accelerators"),
        (2, "distributed_type: FSDP: accelerate shards weights on accelerators only"),
    ],
)
def test_processes_that_accelerate_does_not_connect_or_shard_are_an_error(found, says, monkeypatch):
    """As an FSDP configuration does without accelerators: with --use_cpu accelerate finds two processes, else one."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("cctuning.training.checks.is_fsdp_enabled", lambda: True)
    kind = DistributedType.MULTI_CPU if found == 2 else DistributedType.NO
    state = SimpleNamespace(distributed_type=kind)
    with pytest.raises(UserError, match=says):
        check_launch(SimpleNamespace(parallelism_config=None, world_size=found, distributed_state=state))


def engine(**fsdp):
    options = {"fsdp_version": 2, "activation_checkpointing": False, **fsdp}
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**options))
    return SimpleNamespace(distributed_type="FSDP", state=state, mixed_precision="no")


def test_unsupported_engines_are_an_error():
    check_engine(engine(), model(), "gated", "adamw_torch")
    with pytest.raises(UserError, match="fsdp_version: 1 is not supported"):
        check_engine(engine(fsdp_version=1), model(), "gated", "adamw_torch")
    with pytest.raises(UserError, match="fsdp_activation_checkpointing: true"):
        check_engine(engine(activation_checkpointing=True), model(), "gated", "adamw_torch")
    with pytest.raises(UserError, match="connection: adaptive is not supported with sharded weights"):
        check_engine(engine(), model(), "adaptive", "adamw_torch")
    with pytest.raises(UserError, match="optim: adafactor needs whole matrices"):
        check_engine(engine(), model(), "gated", CCConfig("unused", use_cpu=True, optim="adafactor").optim)
    mixed = model()
    mixed.lm_head.to(torch.bfloat16)
    with pytest.raises(UserError, match="here are bfloat16, float32"):
        check_engine(engine(), mixed, "gated", "adamw_torch")


def test_deepspeed_and_the_others_do_not_read_each_others_checkpoints(tmp_path, monkeypatch):
    check_checkpoint(str(tmp_path))
    (tmp_path / "latest").write_text("global_step2")
    with pytest.raises(UserError, match="written by DeepSpeed"):
        check_checkpoint(str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_checkpoint(str(tmp_path))
    (tmp_path / "latest").unlink()
    with pytest.raises(UserError, match="DeepSpeed reads its own checkpoints only"):
        check_checkpoint(str(tmp_path))


def test_launch_options_are_checked(capsys):
    assert "no such file" in refused(capsys, "train", "--accelerate_config", "fsdp9.yaml", "--config", "r.yaml")
    assert "needs --accelerate_config" in refused(capsys, "train", "--num_processes", "2")
    config = Path(__file__).parents[2] / "recipes" / "accelerate" / "ddp.yaml"
    said = refused(capsys, "train", f"--accelerate_config={config}", "--num_processes", "two")
    assert "expected an integer of at least 1" in said


def test_the_error_of_a_launched_process_is_the_last_line(tmp_path, capfd):
    """And not the launcher's account of a process that failed."""
    config = tmp_path / "one.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    argv = ["train", "--accelerate_config", str(config), "--model", "m", "--data", "d", "--align_weight", "nan"]
    assert main([*argv, "--output_dir", str(tmp_path / "run")]) == 2
    assert "align_weight: expected a number, got nan" in capfd.readouterr().err.splitlines()[-1]
