"""Check how a run was launched.

Data parallelism (DDP), FSDP2 and DeepSpeed ZeRO split rows and weights, and a layer still sees whole activations of
whole rows. What raises an error here splits the activations that the connection compares, or separates rows from their
references.
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
    "tp_size": "tensor parallelism splits the layers that are connected",
    "cp_size": "context parallelism splits rows, and each part needs the whole reference",
    "sp_size": "sequence parallelism splits rows, and each part needs the whole reference",
}
ON_CPUS = "on CPUs use the ddp configuration (`cctuning recipes ddp`) with `use_cpu: true`, and --use_cpu true"
INSTEAD = "launch with --accelerate_config ddp, fsdp2, zero2 or zero3"


def check_launch(args: Any) -> None:
    """Raise `UserError` if accelerate splits layers or rows, or does not connect the processes."""
    for name, why in SPLIT.items():
        given = getattr(args.parallelism_config, name, None)  # accelerate falls back on the environment
        size = int(given or os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1"))
        if size > 1:
            raise UserError(f"parallelism_config: {name}: {size} is not supported: {why}; set it to 1, {INSTEAD}.")
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false").lower() == "true":
        raise UserError(f"distributed_type: MEGATRON_LM is not supported; {INSTEAD}.")
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if processes > args.world_size:
        raise UserError(
            f"num_processes: {processes} were launched, but accelerate finds no accelerators and would train each on "
            f"its own, into the same directory; {ON_CPUS}, or launch one process."
        )
    if args.n_gpu > 1:
        raise UserError(
            f"one process sees {args.n_gpu} accelerators, and transformers would split each batch between them; start "
            "with accelerate launch, or show it one (CUDA_VISIBLE_DEVICES=0)."
        )
    if is_fsdp_enabled() and args.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(f"distributed_type: FSDP: accelerate shards weights on accelerators only; {ON_CPUS}.")


def check_checkpoint(checkpoint: str) -> None:
    """Raise `UserError` unless both the checkpoint and the run use DeepSpeed, or neither: formats differ."""
    written = (Path(checkpoint) / "latest").is_file()  # names the folder of DeepSpeed's files
    running = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if written and not running:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint}: written by DeepSpeed, and its optimizer cannot be read without "
            "it; resume with the zero2 or zero3 configuration of the original run."
        )
    if running and not written:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint}: DeepSpeed reads its own checkpoints only; resume in one process, "
            "or with --accelerate_config ddp or fsdp2."
        )


def check_engine(accelerator: Accelerator, model: nn.Module, connection: str, optim: str) -> None:
    """Raise `UserError` if the connection (of this kind) does not work under the engine or one of its options."""
    fsdp = accelerator.state.fsdp_plugin if accelerator.distributed_type == "FSDP" else None
    zero = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise UserError(f"fsdp_version: {fsdp.fsdp_version} is not supported; set it to 2 in accelerate's config.")
    if fsdp is not None and fsdp.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing: true changes the names of layers in checkpoints; set it to false, and "
            "activation_checkpointing: true in the recipe."
        )
    if optim == "adafactor" and (fsdp is not None or zero is not None):
        raise UserError(
            "optim: adafactor needs whole matrices, and here they are sharded; set optim: adamw_torch_fused."
        )
    if connection == "adaptive" and (fsdp is not None or (zero is not None and zero.zero_stage == 3)):
        raise UserError(
            "connection: adaptive is not supported with sharded weights: its matrix is solved from whole layers; "
            "launch with --accelerate_config ddp or zero2."
        )
    types = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if fsdp is not None and accelerator.mixed_precision == "no" and len(types) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise UserError(
            f"dtype: FSDP2 needs all trained weights in one dtype, and here are {named}; set dtype: float32 (with "
            "mixed_precision: bf16 it still computes in bfloat16), or tune: lora."
        )
