"""From a connected model to one that any server loads: the transform folded into the weights, or an ordinary LoRA.

Both need a linear transform that acts at every position: a server knows nothing of prompts' ends. What the two do to
the weights is in fold.py and lora.py; this room decides whether they may.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig, delta_matrix
from cctuning.errors import UserError
from cctuning.model.adapter import times_written
from cctuning.model.fold import check_foldable, fold_projection
from cctuning.model.lora import existing_lora, write_lora
from cctuning.model.sites import find_sites, innermost, unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel


def merge(connected: ConnectedModel) -> PreTrainedModel:
    """See `ConnectedModel.merge_and_unload`. Everything that can be refused is, before any weight is changed."""
    transforms = _transforms(connected, "folded")
    model = connected.model
    check_mergeable(model)
    sites = [site for site in find_sites(model) if site.index in transforms] if transforms else []
    for site in sites:
        for projection in site.projections:
            if isinstance(projection.module, BaseTunerLayer) and not isinstance(model, PeftModel):
                raise UserError(
                    f"{projection.name}: an adapter was injected into the plain model; wrap the model with "
                    "get_peft_model or PeftModel.from_pretrained instead, so that it can be merged."
                )
    with connected.disable_adapter(), model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        check_foldable(model, sites)
    if isinstance(model, PeftModel):
        untie(unwrap(model))
    plain = connected.unload()
    if isinstance(plain, PeftModel):
        plain = plain.merge_and_unload()
    for site in find_sites(plain) if transforms else []:
        if site.index in transforms:
            delta = delta_matrix(transforms[site.index])
            for projection in site.projections:
                fold_projection(projection, delta)
    return plain


def check_mergeable(model: nn.Module) -> None:
    """Raise `UserError` where PEFT would refuse to merge its adapter, when it is half done."""
    if not isinstance(model, PeftModel):
        return
    if not isinstance(model.base_model, BaseTuner):
        raise UserError(f"{model.active_peft_config.peft_type.value}: this adapter cannot be merged; remove it first.")
    for name, module in model.named_modules():
        variants = getattr(module, "lora_variant", {})
        if any("ALora" in type(variants.get(adapter)).__name__ for adapter in model.active_adapters):
            raise UserError(
                f"{name}: an aLoRA acts from its invocation tokens on, and a weight acts at all positions."
            )
        if not isinstance(module, BaseTunerLayer) or getattr(module.get_base_layer(), "bias", None) is not None:
            continue
        if any(getattr(module, "lora_bias", {}).get(adapter) for adapter in module.active_adapters):
            raise UserError(f"{name}: lora_bias on a layer that has no bias cannot be merged; train without it.")


def untie(model: PreTrainedModel) -> None:
    """Part the output embedding from the input's where they are one weight and a LoRA is on either: merged into it,
    the LoRA would act at both ends."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    bare: list[Any] = [innermost(end) for end in ends if end is not None]
    if (
        len(bare) == 2
        and bare[0].weight is bare[1].weight
        and any(a is not b for a, b in zip(ends, bare, strict=True))
    ):
        bare[1].weight = nn.Parameter(bare[1].weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def export_lora(connected: ConnectedModel, directory: Path, *, base_name: str | None = None) -> None:
    """See `ConnectedModel.export_lora`.

    Args:
        base_name: what the adapter's config names as its base model; default: where the base was loaded from.
    """
    existing_lora(connected.model)  # an adapter that is no plain LoRA is named as what it is
    trained = connected.base_trained
    if trained or (trained is None and times_written(connected) != connected.written):
        raise UserError(
            "the base's own weights were trained, and a LoRA would not carry them; export with --format fold "
            "(merge_and_unload), or train with tune: lora."
        )
    transforms = _transforms(connected, "exported as a LoRA")
    name = base_name if base_name is not None else unwrap(connected.model).config.name_or_path
    with connected.disable_adapter():
        write_lora(connected.model, transforms, Path(directory), base_name=name or None)


def _transforms(connected: ConnectedModel, what: str) -> dict[int, nn.Module]:
    """Layer -> its linear transform; empty where the connection has none."""
    check_config(connected.config, what)
    transforms = {number: part.transform for number, part in connected.connections.items()}
    found = {number: transform for number, transform in transforms.items() if transform is not None}
    for number, transform in found.items():
        check_finite(number, transform)
    return found


def check_config(config: ConnectionConfig, what: str) -> None:
    """Raise `UserError` unless a connection of these options can be `what` (folded, exported as a LoRA)."""
    if config.foldable:
        return
    if config.connection != "gated":
        reason = f"connection: {config.connection} runs the prompt's last token a second time, which no weight does"
    elif config.scope != "all":
        reason = f"scope: {config.scope} acts at some positions only, and a weight acts at all"
    else:
        reason = f"transform: {config.transform} is not linear"
    code = " Export it with --format code." if config.connection == "gated" and config.scope == "all" else ""
    raise UserError(
        f"this connection cannot be {what}: {reason}.{code} Serve it with cctuning generate, or train with "
        "connection: gated, scope: all and transform: low_rank."
    )


def check_finite(layer: int, transform: nn.Module) -> None:
    """Raise `UserError` where a transform holds what no weight can."""
    if not all(bool(torch.isfinite(p).all()) for p in transform.parameters()):
        raise UserError(f"layer {layer}: its transform holds NaN or infinite values; train again.")
