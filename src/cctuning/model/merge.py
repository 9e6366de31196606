"""Merge a linear transform into the weights that produce the activation.

y -> y W = y + y M with y = x D^T + b is the same model with D^T + D^T M in place of D^T and b + b M in place of b, as
long as only sums and scalar gates lie between the projections and the output of the FFN block. transformers has many
families, so `check_linear` tests this on the model at hand, in one layer of each kind, before any weight changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from cctuning.connection import Transform
from cctuning.errors import UserError
from cctuning.model.runner import evaluating, first
from cctuning.model.sites import Projection, Site, find_sites, innermost, unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel

# Largest relative error of a block's output after a merge, by dtype: about ten units of rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
PROBE_TOKENS, PROBE_RANK = 8, 4


def merged(projection: Projection, name: str, value: Tensor, delta: Tensor) -> Tensor:
    """`value`, the weight or bias called `name` of a projection, times W = I + `delta`.

    `delta` is (d, d), row convention: the output y becomes y + y @ delta. Sums are taken in fp32 (fp64 where the
    weight is fp64) and cast to the weight's type once.
    """
    precise = torch.promote_types(value.dtype, torch.float32)
    exact, delta = value.to(precise), delta.to(value.device, precise)
    on_the_right = name == projection.bias or projection.kind == "conv1d" or projection.transposed  # stored (d_ff, d)
    return (exact + (exact @ delta if on_the_right else delta.T @ exact)).to(value.dtype)


@torch.no_grad()
def merge_projection(projection: Projection, delta: Tensor) -> None:
    """Multiply a projection, which `check_merge` has checked, by W = I + `delta` in place: weights, bias."""
    for name, tensor in tensors_of(projection):
        for part in tensor if tensor.dim() == 3 else (tensor,):  # one expert at a time: fp32 is large
            part.copy_(merged(projection, name, part, delta))


# -- what cannot be merged -------------------------------------------------------------------------------------------


def check_merge(connected: ConnectedModel, exact: bool = True) -> dict[int, Transform]:
    """Raise `UserError` unless the model can be merged, and return the transforms by layer; no weight is changed.

    Args:
        exact: try a merge, which needs the weights in memory.
    """
    transforms = linear_transforms(connected, "merged")
    model = connected.model
    check_adapter_mergeable(model)
    sites = [site for site in find_sites(model) if site.index in transforms] if transforms else []
    if exact:
        for projection in (projection for site in sites for projection in site.projections):
            plain_weight(projection, "merging")
        check_not_shared(model, sites)
        with connected.disable_adapter(), model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            check_linear(model, sites)
    return transforms


def linear_transforms(connected: ConnectedModel, what: str) -> dict[int, Transform]:
    """Layer -> its linear transform; empty where the connection has none. `what` is the verb of the error message."""
    config = connected.config
    if not config.mergeable:
        if config.connection != "gated":
            reason = f"connection: {config.connection} runs the prompt twice, which no weight can do"
        elif config.scope != "all":
            reason = f"scope: {config.scope} acts at some positions only, and a weight acts at all of them"
        else:
            reason = f"transform: {config.transform} is not linear"
        raise UserError(
            f"this connection cannot be {what}: {reason}. Serve it with cctuning generate, or train with "
            "connection: gated, scope: all and transform: low_rank."
        )
    found = {number: part.transform for number, part in connected.connections.items() if part.transform is not None}
    for number, transform in found.items():
        if not all(bool(torch.isfinite(p).all()) for p in transform.parameters() if not p.is_meta):
            raise UserError(f"layer {number}: its transform holds NaN or infinite values; train again.")
    return found


def check_adapter_mergeable(model: nn.Module) -> None:
    """Raise `UserError` where PEFT cannot merge its adapter; PEFT itself would fail halfway."""
    if not isinstance(model, PeftModel):
        if name := next((name for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)), None):
            raise UserError(
                f"{name}: an adapter was injected into the plain model; wrap the model with get_peft_model instead."
            )
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
    """Give the output embedding a weight of its own where it shares the input's and a LoRA is on either of them:
    merged into the shared weight, the LoRA would act at both ends."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    bare: list[Any] = [innermost(end) for end in ends if end is not None]
    if len(bare) == 2 and bare[0].weight is bare[1].weight and ends != bare:
        bare[1].weight = nn.Parameter(bare[1].weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def plain_weight(projection: Projection, purpose: str) -> Tensor:
    """The projection's weight in floating point, of its innermost layer under PEFT."""
    weight = getattr(innermost(projection.module), projection.weight)
    if not isinstance(weight, Tensor) or weight.dtype not in TOLERANCE:
        held = f"{type(weight).__name__} of {getattr(weight, 'dtype', 'unknown type')}"
        raise UserError(
            f"{projection.name}: its weights are quantised ({held}), and {purpose} needs them in floating point; "
            "load the base model without quantization_config and try again."
        )
    if weight.is_meta:
        raise UserError(f"{projection.name}: its weights are not in memory (offloaded to disk); load the whole model.")
    if hasattr(weight, "full_tensor") or weight.numel() == 0:
        raise UserError(f"{projection.name}: its weights are sharded over processes; load the model in one process.")
    return weight


def tensors_of(projection: Projection) -> Iterator[tuple[str, Tensor]]:
    """Name and value of the projection's weight and bias, of its innermost layer under PEFT."""
    for name in (projection.weight, projection.bias):
        if name is not None:
            yield name, getattr(innermost(projection.module), name)


def check_not_shared(model: nn.Module, sites: list[Site]) -> None:
    """Raise `UserError` where a weight that the merge changes belongs to another module too."""
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for projection in (projection for site in sites for projection in site.projections):
        for name, tensor in tensors_of(projection):
            if shared[id(tensor)] > 1:
                raise UserError(
                    f"{projection.name}.{name}: tied to another module's weight, which a merge would change too; "
                    "save the connection and serve it with cctuning generate."
                )


@torch.no_grad()
def check_linear(model: nn.Module, sites: list[Site]) -> None:
    """Raise `UserError` unless the merge of a random matrix is exact in one layer of each kind. PEFT layers are looked
    through: the model must run with its adapters disabled meanwhile."""
    # Kinds differ in the class of their block and the layout of its projections.
    kinds = {(type(site.block), tuple((p.kind, p.transposed) for p in site.projections)): site for site in sites}
    base = unwrap(model)
    seen: dict[nn.Module, tuple[Any, Any]] = {}  # arguments of each block when the model reads a few tokens

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[module] = args, kwargs

    with evaluating(base):
        with ExitStack() as hooks:
            for site in kinds.values():
                hooks.enter_context(site.block.register_forward_pre_hook(keep, with_kwargs=True))
            embedding: Any = base.get_input_embeddings().weight
            tokens = torch.arange(PROBE_TOKENS, device=embedding.device)[None] % len(embedding)
            if kinds:
                base(input_ids=tokens, use_cache=False)
        for site in kinds.values():
            args, kwargs = seen[site.block]
            draw = torch.Generator().manual_seed(site.index)
            a, b = (torch.randn(site.size, PROBE_RANK, generator=draw) for _ in range(2))
            delta = a @ b.T / (site.size * PROBE_RANK) ** 0.5
            paths = {id(module): path for path, module in site.block.named_modules()}
            changed = {
                f"{paths[id(innermost(part.module))]}.{name}".removeprefix("."): merged(part, name, tensor, delta)
                for part in site.projections
                for name, tensor in tensors_of(part)
            }
            before = first(site.block(*args, **kwargs)).double()
            after = first(functional_call(site.block, changed, args, kwargs)).double()
            expected = before + before @ delta.to(before)
            error = ((after - expected).norm() / expected.norm().clamp(min=1e-30)).item()
            tolerance = max(TOLERANCE[tensor.dtype] for tensor in changed.values())
            if not error <= tolerance:
                raise UserError(
                    f"{site.name}: merging is not exact in this family ({base.config.model_type}, "
                    f"{type(site.block).__name__}): the error of a trial merge is {error:.1e}, expected at most "
                    f"{tolerance:.0e}. The model is unchanged; serve it with cctuning generate."
                )
