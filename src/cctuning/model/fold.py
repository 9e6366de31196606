"""Folding: a linear transform multiplied into the weights that produce the activation.

y -> y W = y + y M, with y = x D^T + b, is the same model with D^T + D^T M for D^T and b + b M for b, because nothing
stands between the projections and the block's output but sums and scalar gates. That last clause is a claim about a
family's code, and transformers has many families: `check_linear` tries it on the model at hand, on one layer of each
kind, before any weight is changed for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from cctuning.errors import UserError
from cctuning.model.sites import Projection, Site, innermost, unwrap

# Largest relative error of a block's output after a fold, by dtype: some ten units of rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
PROBE_TOKENS, PROBE_RANK = 8, 4


def plain_weight(projection: Projection, purpose: str) -> Tensor:
    """The projection's weight in floating point, of its innermost layer under PEFT.

    Raises:
        UserError: it is quantised, or not there (meta device, sharded).
    """
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


def fold_projection(projection: Projection, delta: Tensor) -> None:
    """Multiply a projection by W = I + `delta`, in place; bias and every expert too.

    Args:
        delta: (d, d), row convention: the output y becomes y + y @ delta. Sums are taken in fp32 (fp64 where the
            weight is fp64) and cast to the weight's type once.

    Raises:
        UserError: quantised, absent or PEFT-wrapped weights.
    """
    if isinstance(projection.module, BaseTunerLayer):
        raise UserError(
            f"{projection.name}: a PEFT adapter ({type(projection.module).__name__}) is still on it; merge it first "
            "(merge_and_unload of the PEFT model)."
        )
    weight = plain_weight(projection, "folding")
    bias = getattr(projection.module, projection.bias) if projection.bias is not None else None
    precise = torch.promote_types(weight.dtype, torch.float32)
    delta = delta.to(weight.device, precise)
    on_the_right = projection.kind == "conv1d" or projection.transposed  # stored (d_ff, d)
    with torch.no_grad():
        for matrix in weight if projection.kind == "experts" else (weight,):  # one expert at a time: fp32 is large
            exact = matrix.to(precise)
            matrix.copy_(exact + exact @ delta if on_the_right else exact + delta.T @ exact)
        if bias is not None:
            exact = bias.to(precise)
            bias.copy_(exact + exact @ delta)


def check_foldable(model: nn.Module, sites: list[Site]) -> None:
    """Raise `UserError` unless a fold into `sites` of `model` is possible and exact; no weight is changed.

    PEFT layers are looked through: the model must run with its adapters disabled meanwhile.
    """
    sites = [replace(site, projections=tuple(map(_bare, site.projections))) for site in sites]
    for projection in (projection for site in sites for projection in site.projections):
        plain_weight(projection, "folding")
    check_not_shared(model, sites)
    check_linear(model, sites)


def check_not_shared(model: nn.Module, sites: list[Site]) -> None:
    """Raise `UserError` where a weight that a fold into `sites` changes is another module's too."""
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for projection in (projection for site in sites for projection in site.projections):
        for name in (projection.weight, projection.bias):
            if name is not None and shared[id(getattr(projection.module, name))] > 1:
                raise UserError(
                    f"{projection.name}.{name}: tied to another module's, which a fold would change too; "
                    "save the connection and serve it with cctuning generate."
                )


def _bare(projection: Projection) -> Projection:
    return replace(projection, module=innermost(projection.module))


def kinds_of(sites: list[Site]) -> list[Site]:
    """One site of each kind that is folded in a way of its own."""
    kinds = {(type(site.block), tuple((p.kind, p.transposed) for p in site.projections)): site for site in sites}
    return list(kinds.values())


def check_linear(model: nn.Module, sites: list[Site]) -> None:
    """Try a fold in one layer of each kind.

    Raises:
        UserError: it is not exact.
    """
    kinds = kinds_of(sites)
    for site, (args, kwargs) in zip(kinds, _inputs(model, kinds) if kinds else [], strict=True):
        try_fold(site, args, kwargs, unwrap(model).config.model_type)


def try_fold(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], family: str) -> None:
    """Fold a random matrix into a site, compare its block's output, and put the weights back.

    Args:
        args, kwargs: what the block is called with.
        family: named in the error.

    Raises:
        UserError: the outputs differ: something that is not linear, or an addend of its own, stands in between.
    """
    with torch.no_grad(), _kept(site):
        before = _first(site.block(*args, **kwargs)).double()
        generator = torch.Generator().manual_seed(site.index)
        a, b = (torch.randn(site.size, PROBE_RANK, generator=generator) for _ in range(2))
        delta = a @ b.T / (site.size * PROBE_RANK) ** 0.5
        for projection in site.projections:
            fold_projection(projection, delta)
        after = _first(site.block(*args, **kwargs)).double()
    expected = before + before @ delta.to(before)
    error = ((after - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    tolerance = max(TOLERANCE[plain_weight(p, "folding").dtype] for p in site.projections)
    if not error <= tolerance:
        raise UserError(
            f"{site.name}: folding is not exact in this family ({family}, {type(site.block).__name__}): a trial fold "
            f"missed by {error:.1e}, at most {tolerance:.0e} expected. The model is unchanged; serve it with cctuning "
            "generate."
        )


def _inputs(model: nn.Module, sites: list[Site]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the blocks of `sites` are called with when the model reads a few tokens."""
    seen: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    base = unwrap(model)
    embedding = base.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    tokens = torch.arange(PROBE_TOKENS, device=embedding.device)[None] % embedding.shape[0]
    training = base.training
    base.eval()
    with ExitStack() as hooks, torch.no_grad():
        for place, site in enumerate(sites):

            def keep(module: nn.Module, args: Any, kwargs: Any, place: int = place) -> None:
                seen[place] = (args, kwargs)

            hooks.enter_context(site.block.register_forward_pre_hook(keep, with_kwargs=True))
        base(input_ids=tokens, use_cache=False)
    base.train(training)
    return [seen[place] for place in range(len(sites))]


@contextmanager
def _kept(site: Site) -> Iterator[None]:
    """Within: in eval mode; the site's projections may be changed, and get their values back after."""
    parameters = [
        getattr(projection.module, name)
        for projection in site.projections
        for name in (projection.weight, projection.bias)
        if name is not None
    ]
    copies = [parameter.detach().clone() for parameter in parameters]
    modes = [(module, module.training) for module in site.block.modules()]
    site.block.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.data.copy_(copy)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
