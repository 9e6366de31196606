"""Checks of a run before it starts: how it was launched, the sizes of its rows, and what it trains.

Data parallelism (DDP), FSDP2 and DeepSpeed ZeRO split rows and weights, and a layer still sees whole activations of
whole rows. What raises an error here splits the activations that the connection compares, or separates rows from their
references.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch import nn
from transformers.integrations import is_fsdp_enabled

from cctuning.errors import UserError
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.lora import HARMLESS_STARTS
from cctuning.model.sites import find_sites, innermost, text_parts, unwrap

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

SPLIT = {
    "tp_size": "tensor parallelism splits the layers that are connected",
    "cp_size": "context parallelism splits rows, and each part needs the whole reference",
    "sp_size": "sequence parallelism splits rows, and each part needs the whole reference",
}
ON_CPUS = "on CPUs use the ddp configuration with `use_cpu: true`, and --use_cpu true"
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
            f"its own; {ON_CPUS}, or launch one process."
        )
    if is_fsdp_enabled() and args.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(f"distributed_type: FSDP: accelerate shards weights on accelerators only; {ON_CPUS}.")


def check_engine(
    accelerator: Accelerator, model: nn.Module, connection: str, optim: str, base_decay: float = 0.0
) -> None:
    """Raise `UserError` if the connection (of this kind) or an option does not work under the engine."""
    fsdp = accelerator.state.fsdp_plugin if accelerator.distributed_type == "FSDP" else None
    zero = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise UserError(f"fsdp_version: {fsdp.fsdp_version} is not supported; set it to 2 in accelerate's config.")
    if fsdp is not None and fsdp.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing: true changes the names of layers in checkpoints; set it to false, and "
            "activation_checkpointing: true in the recipe."
        )
    if base_decay and zero is not None:
        raise UserError(
            "base_decay: not supported under DeepSpeed, which manages the weights; set it to 0, or launch with "
            "--accelerate_config fsdp2 or ddp."
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


def check_adapter_start(model: nn.Module) -> None:
    """Raise `UserError` for an adapter whose initialisation rewrites the base's weights (PiSSA, OLoRA, CorDA, LoftQ,
    LoRA-GA, KaSA).

    Only the adapter of such a run is saved, and the weights that it belongs to are in no file; not all of these
    initialisations can compute them again.
    """
    for config in getattr(model, "peft_config", {}).values():
        if not isinstance(config, LoraConfig):
            continue
        start = "kasa" if getattr(config, "kasa_config", None) is not None else config.init_lora_weights
        if start not in HARMLESS_STARTS:
            raise UserError(
                f"init_lora_weights: {start!r} rewrites the base's weights, which are not saved with checkpoints and "
                "exports, so neither would be the trained model; use True (the default), 'gaussian', 'orthogonal' or "
                "'eva'."
            )
        saved = config.modules_to_save or []
        tied = getattr(unwrap(model).config.get_text_config(), "tie_word_embeddings", False)
        if config.trainable_token_indices and tied and "lm_head" in saved:  # as TRL has it after chat_template_path
            raise UserError(
                "trainable_token_indices with modules_to_save: lm_head: input and output embedding are one weight in "
                "this model, and PEFT cannot train it in both ways. Where chat_template_path added tokens, use "
                "tune: full, or a template file (.jinja) and the tokens that the model has."
            )


def check_sizes(trainer: CCTrainer) -> None:
    """Raise `UserError` if a row has a token beyond the vocabulary, or more tokens than the model has positions."""
    model = unwrap(trainer.model)
    embedding: Any = innermost(model.get_input_embeddings())  # inside a LoRA or trainable tokens
    embedding = getattr(embedding, "original_module", embedding)
    vocabulary = embedding.num_embeddings  # its weight has shape 0 under ZeRO-3
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    evaluated: Any = trainer.eval_dataset
    sets = evaluated.values() if isinstance(evaluated, dict) else [evaluated]
    for rows in (trainer.train_dataset, trainer.parallel, trainer.held, *sets):
        if rows is None:
            continue
        for column in ("input_ids", "reference_input_ids"):
            ids = rows.with_format("arrow")[:][column]
            largest, longest = pc.max(pc.list_flatten(ids)).as_py(), pc.max(pc.list_value_length(ids)).as_py()
            if largest is not None and largest >= vocabulary:
                raise UserError(
                    f"tokenizer: token {largest} is outside the model's vocabulary of {vocabulary}; use the model's "
                    "own."
                )
            if positions is not None and longest > positions:
                option = "max_length" if column == "input_ids" else "max_reference_length"
                raise UserError(
                    f"{option}: a row has {longest} tokens, and the model has {positions} positions; set {option} to "
                    f"at most {positions}" + ("." if column == "input_ids" else " and shorten or skip such rows.")
                )


def check_best(metric: str | None, eval_dataset: Any) -> None:
    """Raise `UserError` if the best weights are chosen by a `metric` that none of several evaluation sets has."""
    names = eval_dataset if isinstance(eval_dataset, dict) and metric is not None else ()
    if names and not str(metric).removeprefix("eval_").startswith(tuple(f"{name}_" for name in names)):
        known = " or ".join(f"eval_{name}_loss" for name in names)
        raise UserError(f"metric_for_best_model: {metric}: eval_dataset has no such metric; set it to {known}.")


def freeze_beside_text(model: nn.Module) -> list[str]:
    """Freeze what trains of a multimodal model beside its text part, and return a note about it.

    Such weights get no gradient, for which DDP would wait.
    """
    parts = text_parts(model)
    text = {id(weight) for part in parts.values() for weight in part.parameters()}
    named = unwrap(model).named_parameters() if parts else ()
    beside = {name: weight for name, weight in named if weight.requires_grad and id(weight) not in text}
    for weight in beside.values():
        weight.requires_grad_(False)
    where = sorted({".".join(name.split(".")[:2]) for name in beside})
    return [f"{', '.join(where)}: not trained, as rows are text"] if where else []


def check_weights(connected: ConnectedModel, optimizer: Any) -> None:
    """Raise `UserError` if no weight trains, none that the alignment can reach, or if a given optimizer lacks some.

    Args:
        optimizer: given to the trainer, made before the connection was attached; None: it is made later.
    """
    trained = {name: weight for name, weight in connected.model.named_parameters() if weight.requires_grad}
    if not trained:
        raise UserError("nothing would train: the base is frozen and the connection has no part that learns.")
    if connected.aligned and connected.config.weight > 0:
        model = unwrap(connected.model)
        later = [site.layer for site in find_sites(connected.model) if site.index > connected.layers[-1]]
        out = {id(weight) for part in (*later, model.get_output_embeddings()) for weight in part.parameters()}
        out -= {id(weight) for weight in model.get_input_embeddings().parameters()}  # tied
        if {id(weight) for weight in trained.values()} <= out:
            raise UserError(
                f"layers: {connected.layers}: no weight at or below the last aligned layer trains, so the alignment "
                "changes nothing; train weights of these layers too, or align later ones."
            )
    if optimizer is not None:
        known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        if any(ATTRIBUTE in name and id(weight) not in known for name, weight in trained.items()):
            raise UserError(
                "optimizers: the optimizer was made before the connection and lacks its weights; set optim in the "
                "options, or give optimizer_cls_and_kwargs."
            )
