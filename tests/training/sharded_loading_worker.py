"""What each of several gloo processes runs; started by test_sharded_loading.py through torch's own launcher.

`compare`: each case is loaded by the first process, sharded by accelerate, and compared with the model that
from_pretrained reads. `memory`: what that takes in each process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.training.options import RunOptions
from cctuning.training.run import load_model
from tests.parity.launched import on_processors


def made(model: torch.nn.Module, lora: bool) -> torch.nn.Module:
    """`model` with all that is added to it before it is sharded."""
    torch.manual_seed(0)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    ConnectedModel.attach(model, ConnectionConfig("gated", transform_rank=3))
    return model


def loaded(base: Path, dtype: str) -> torch.nn.Module:
    args = SimpleNamespace(trust_remote_code=False)  # a CCConfig would make a state of its own
    return load_model(RunOptions(model=str(base), dtype=dtype), args)


def check(accelerator: Accelerator, base: Path, dtype: str, lora: bool) -> None:
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = None  # of the family before
    model = made(loaded(base, dtype), lora)
    optimiser = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    model, optimiser = accelerator.prepare(model, optimiser)
    expected = made(AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)), lora)
    found, wanted = dict(model.named_parameters()), dict(expected.named_parameters())
    assert found.keys() == wanted.keys()  # tied ones are one parameter
    for name, parameter in wanted.items():
        shard = found[name]
        assert isinstance(shard, DTensor) and shard.requires_grad == parameter.requires_grad, name
        raised = accelerator.mixed_precision != "no" and parameter.requires_grad  # accelerate trains in fp32
        assert shard.dtype == (torch.float32 if raised else parameter.dtype), name
        assert torch.equal(shard.full_tensor(), parameter.to(shard.dtype)), name
    buffers = dict(model.named_buffers())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    trained = {id(parameter) for parameter in found.values() if parameter.requires_grad}
    assert {id(p) for group in optimiser.param_groups for p in group["params"]} == trained


def compare(folder: Path, precision: str, dtype: str) -> None:
    accelerator = Accelerator(mixed_precision=precision)
    for base in sorted(folder.iterdir()):
        for lora in (False, True):
            try:
                check(accelerator, base, dtype, lora)
            except BaseException as error:
                raise AssertionError(f"{base.name}, lora: {lora}") from error


def memory(base: Path) -> None:
    """Print by how many bytes the most that this process held exceeds what it held before."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024

    accelerator = Accelerator(mixed_precision="no")
    before = status("VmRSS")
    model = loaded(base, "float32")
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    print(f"process {accelerator.process_index} took {status('VmHWM') - before}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    on_processors()
    {"compare": compare, "memory": memory}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # as tests/parity/workers.py leaves, and for the same reason
