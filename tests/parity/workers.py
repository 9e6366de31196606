"""What each of several gloo processes runs; started by test_distributed.py through torch's own launcher."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.model.sites import unwrap
from tests.conftest import paired_batch, shake, tiny_llama


class Gathers(TorchDispatchMode):
    """Counts gatherings of sharded weights."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "allgather" in func.name()
        return func(*args, **(kwargs or {}))


def connected(paths: str, checkpointing: str, tune: str = "full") -> ConnectedModel:
    model = tiny_llama()
    if tune == "lora":
        torch.manual_seed(0)
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora)
    made = ConnectedModel.attach(model, ConnectionConfig("gated", paths=paths))
    shake(made)
    made.step, made.total_steps = 1, 3
    if checkpointing != "off":
        made.model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    return made.train()


def parts_of(batch: dict[str, torch.Tensor], world: int) -> list[dict[str, torch.Tensor]]:
    """Four rows dealt out unevenly to two ranks (3, 1) and evenly to four: the last has an English row alone."""
    parts = []
    for rows in torch.arange(4).split([3, 1] if world == 2 else 1):
        part = {name: batch[name][rows] for name in ("input_ids", "attention_mask", "labels", "reference_index")}
        for name in ("reference_input_ids", "reference_attention_mask"):
            part[name] = batch[name]
        part["row"] = rows
        parts.append(part)
    return parts


def main(kind: str, paths: str, checkpointing: str, tune: str, output: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, world = dist.get_rank(), dist.get_world_size()
    made = connected(paths, checkpointing, tune)
    part = parts_of(paired_batch(), world)[rank]
    counts = {"num_items_in_batch": int((paired_batch()["labels"][:, 1:] != -100).sum()), "num_rows_in_batch": 4}
    through: torch.nn.Module | None = None
    if kind == "ddp":
        through = DistributedDataParallel(made.model)
    else:
        for layer in unwrap(made.model).model.layers:
            fully_shard(layer)
        fully_shard(made.model)
    with Gathers() as gathers:
        loss = made(**part, **counts, loss_only=True, through=through).loss * world  # both average over ranks
        loss.backward()
    gradients = {}
    for name, parameter in made.model.named_parameters():
        gradient = parameter.grad
        if gradient is None:  # frozen under a LoRA
            continue
        gradients[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    total = loss.detach() / world
    dist.all_reduce(total)
    if rank == 0:
        torch.save({"loss": total, "gradients": gradients, "gathers": gathers.count}, output)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    # The work is done. Returning would free DDP's reducer, which has been seen to wait for ever on a gloo thread (one
    # start in fifteen on two cores, torch 2.13); so leave from here, with everything still alive.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
