"""Which ways of running over many processes are right with a connection, and which are refused by name.

Data parallel (DDP), fully sharded (FSDP2) and ZeRO split rows and weights, and a layer still sees whole activations of
whole rows. The ways refused here split the activations that the connection compares, or part rows from references.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers.integrations import is_fsdp_enabled

from cctuning.errors import UserError

SPLIT = {
    "tp_size": "tensor parallelism splits the projections that the connection's parts belong to",
    "cp_size": "context parallelism splits a row, and every part of it is offered the end of the reference",
    "sp_size": "sequence parallelism splits a row, and every part of it is offered the end of the reference",
}
ON_PROCESSORS = (
    "on processors alone use `cctuning recipes ddp` with `use_cpu: true` added, and --use_cpu true for the run"
)
INSTEAD = "launch with --accelerate_config ddp, fsdp2, zero2 or zero3"


def check_launch(args: Any) -> None:
    """Raise `UserError` where accelerate was launched to split layers or rows, or in processes it leaves apart."""
    for name, why in SPLIT.items():
        given = getattr(args.parallelism_config, name, None)  # accelerate itself falls back on the environment
        size = int(given or os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1"))
        if size > 1:
            raise UserError(f"parallelism_config: {name}: {size} is not supported: {why}; set it to 1, {INSTEAD}.")
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false").lower() == "true":
        raise UserError(f"distributed_type: MEGATRON_LM is not supported; {INSTEAD}.")
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if processes > args.world_size:
        raise UserError(
            f"num_processes: {processes} were launched, and accelerate, which finds no accelerators for them, would "
            f"have each train alone into the same directory; {ON_PROCESSORS}, or launch one."
        )
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} accelerators are seen by one process, and transformers would split each batch between them "
            "and part rows from references; start with accelerate launch, or show one (CUDA_VISIBLE_DEVICES=0)."
        )
    if is_fsdp_enabled() and args.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(f"distributed_type: FSDP: accelerate shards weights on accelerators only; {ON_PROCESSORS}.")


def under_deepspeed(args: Any) -> bool:
    """Whether the run's weights will be in DeepSpeed's hands."""
    return bool(args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true")


def check_checkpoint(checkpoint: str) -> None:
    """Raise `UserError` for a checkpoint of DeepSpeed's where the run is none of its, and the other way round.

    Its optimiser lies there in a form that it alone reads; the weights are ordinary files.
    """
    written = (Path(checkpoint) / "latest").is_file()  # names the folder of DeepSpeed's own files
    running = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if written and not running:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint}: its optimiser was written by DeepSpeed, which alone reads it; "
            "resume with the zero2 or zero3 configuration it was started with."
        )
    if running and not written:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint}: DeepSpeed reads its own checkpoints only; resume in one process, "
            "or with --accelerate_config ddp or fsdp2."
        )


def check_engine(accelerator: Accelerator, model: nn.Module, connection: str, optim: str) -> None:
    """Raise `UserError` for an engine, or an option of it, under which the connection would not be right.

    Args:
        model: connected, before it is wrapped.
        connection: its kind. optim: the optimiser's name.
    """
    fsdp = accelerator.state.fsdp_plugin if accelerator.distributed_type == "FSDP" else None
    zero = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise UserError(f"fsdp_version: {fsdp.fsdp_version} is not supported; set it to 2 in accelerate's config.")
    if fsdp is not None and fsdp.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing: true gives layers other names in checkpoints; set it to false, and "
            "activation_checkpointing: true in the recipe."
        )
    if optim == "adafactor" and (fsdp is not None or zero is not None):
        raise UserError(
            "optim: adafactor keeps sums over the rows and columns of whole matrices, and here they are sharded; set "
            "optim: adamw_torch_fused."
        )
    if connection == "adaptive" and (fsdp is not None or (zero is not None and zero.zero_stage == 3)):
        raise UserError(
            "connection: adaptive is not supported where weights are sharded: its matrix is solved from whole layers; "
            "launch with --accelerate_config ddp or zero2."
        )
    types = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if fsdp is not None and accelerator.mixed_precision == "no" and len(types) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise UserError(
            f"dtype: FSDP2 wants all that trains in one type, and here are {named}; set dtype: float32 (with "
            "mixed_precision: bf16 it computes in bfloat16 all the same), or tune: lora."
        )
