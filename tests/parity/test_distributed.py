"""One process and several: the same loss and the same gradients, DDP and FSDP2, with and without checkpointing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import paired_batch
from tests.parity.workers import connected

ROOT = Path(__file__).parents[2]
CASES = [  # the last rank has a row in the reference language alone; of two ranks, one has three rows and one has one
    ("ddp", 2, "sampled", "off", "full"),
    ("ddp", 2, "both", "reentrant", "full"),
    ("ddp", 4, "sampled", "off", "full"),
    ("ddp", 2, "both", "off", "lora"),
    ("fsdp2", 2, "sampled", "off", "full"),
    ("fsdp2", 2, "both", "non-reentrant", "full"),
    ("fsdp2", 4, "both", "off", "full"),
    ("fsdp2", 2, "sampled", "off", "lora"),
]


@pytest.mark.parametrize(("kind", "processes", "paths", "checkpointing", "tune"), CASES)
def test_several_processes_equal_one(kind, processes, paths, checkpointing, tune, tmp_path):
    output = tmp_path / "rank0.pt"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += ["-m", "tests.parity.workers", kind, paths, checkpointing, tune, str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    several = torch.load(output)
    one = connected(paths, checkpointing, tune)
    loss = one(**paired_batch(), row=torch.arange(4), loss_only=True).loss
    loss.backward()
    torch.testing.assert_close(several["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    if kind == "fsdp2":  # each layer for the reference pass, the main pass and backward; the rest once
        assert several["gathers"] == 3 * len(one.connections) + 1
    for name, parameter in one.model.named_parameters():
        expected = parameter.grad
        if expected is None:
            assert name not in several["gradients"]
            continue
        scale = expected.abs().max().clamp(min=1e-6)
        assert (several["gradients"][name] - expected).abs().max() / scale < 1e-5, name
