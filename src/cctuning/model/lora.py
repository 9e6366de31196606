"""Export the transform as an ordinary PEFT LoRA, alone or combined with a LoRA on the base; and what can be exported.

Columns, as PEFT has them: y = D z + b, and y' = W^T y with W^T = I + U V^T, U = B^T (d, r) and V = A (d, r) of the
transform's W = I + A B. Then

    W^T (D + s B1 A1) z = D z + [s B1, U] [A1; V^T (D + s B1 A1)] z

which is a LoRA of rank r1 + r with scaling 1; a bias b adds U V^T b to the output (PEFT's `lora_bias`). The factors
depend on D: the LoRA belongs to these base weights and to no others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cctuning.connection import Transform
from cctuning.errors import UserError
from cctuning.files import directory_atomically
from cctuning.model.merge import check_adapter_mergeable, check_merge, linear_transforms, plain_weight
from cctuning.model.runner import several_processes
from cctuning.model.serialization import LOADING_ERRORS, base_is_trained
from cctuning.model.sites import Projection, find_sites, innermost, is_quantised, unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel

log = logging.getLogger(__name__)

MERGE_INSTEAD = "merge instead (merge_and_unload, or cctuning export --format merged)"
# LoRA initialisations that leave the base's weights unchanged; others (PiSSA, OLoRA, CorDA, LoftQ, …) rewrite them.
HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")


class Factors(NamedTuple):
    """A LoRA of one module with scaling 1: a (r, in), b (out, r), bias (out,) or None."""

    a: Tensor
    b: Tensor
    bias: Tensor | None


def export_lora(
    connected: ConnectedModel, directory: Path, *, base_name: str | None = None, revision: str | None = None
) -> None:
    """Write a LoRA for `PeftModel.from_pretrained(base, directory)`.

    Args:
        directory: missing or empty; written atomically.
        base_name: base model in the adapter's config; default: where the base was loaded from.
        revision: of the base on the hub.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not an empty directory; nothing is overwritten, choose another.")
    transforms, model = check_lora(connected), connected.model
    if not transforms and isinstance(model, PeftModel):  # there is nothing to add to the adapter that PEFT saves
        with directory_atomically(directory) as partial:
            model.save_pretrained(str(partial))
        return
    factors, base = existing_lora(model), unwrap(model)
    for site in find_sites(model):
        for projection in site.projections if site.index in transforms else ():
            old = factors.get(projection.name)
            factors[projection.name] = lora_from_connection(projection, transforms[site.index], old)
    factors = _of_one_rank(factors)
    name = (base.config.name_or_path if base_name is None else base_name) or None
    config = _config(base, factors, name, revision)
    if config.lora_bias:
        log.warning(
            "%s: the base has biases, so this LoRA needs one (lora_bias): vLLM does not support that, and PEFT merges "
            "it only where every module it targets has a bias.",
            directory,
        )
    precise = torch.float64 if base.dtype == torch.float64 else torch.float32
    state: dict[str, Tensor] = {}
    for name, (a, b, bias) in factors.items():
        parts = {"lora_A.weight": a, "lora_B.weight": b}
        if config.lora_bias:
            parts["lora_B.bias"] = torch.zeros_like(b[:, 0]) if bias is None else bias
        state |= {f"base_model.model.{name}.{part}": value for part, value in parts.items()}
    state = {key: value.to("cpu", precise).contiguous() for key, value in state.items()}
    with directory_atomically(directory) as partial:
        config.save_pretrained(str(partial))
        save_file(state, partial / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def lora_from_connection(projection: Projection, transform: Transform, lora: Factors | None) -> Factors:
    """Factors of a projection under its layer's transform, and under its LoRA where it has one."""
    factors = transform.factors()
    assert factors is not None
    weight = plain_weight(projection, "a LoRA export")
    # In fp64: the products are small, and LoRA and merge then differ by the model's own rounding only.
    matrix = weight.detach().double()
    matrix = matrix.T if projection.kind == "conv1d" else matrix
    v, u = (factor.to(weight.device, torch.float64).T for factor in factors)  # (r, d), (d, r)
    whole = torch.zeros_like(matrix[:, 0])  # the bias of the base and of its LoRA
    if projection.bias is not None:
        whole = whole + getattr(innermost(projection.module), projection.bias).detach()
    moved = u @ (v @ whole)
    if lora is None:
        a, b = v @ matrix, u
    else:
        a1, b1 = (part.to(weight.device, torch.float64) for part in (lora.a, lora.b))
        a, b = torch.cat([a1, v @ matrix + (v @ b1) @ a1]), torch.cat([b1, u], dim=1)
        if lora.bias is not None:
            own = lora.bias.to(matrix)
            moved = own + u @ (v @ (whole + own))
    return Factors(a, b, moved if bool(moved.any()) else None)


# -- what cannot be a LoRA -------------------------------------------------------------------------------------------


def check_lora(connected: ConnectedModel) -> dict[int, Transform]:
    """The transforms by layer; `UserError` if the model cannot be exported as a LoRA."""
    transforms, model = linear_transforms(connected, "exported as a LoRA"), connected.model
    if not transforms and isinstance(model, PeftModel):  # exported as PEFT saves it
        return transforms
    if is_quantised(model) and isinstance(model, PeftModel):  # before training: the export is for the plain base
        existing: Any = plain_adapter(model)
    else:
        existing = existing_lora(model)
    for site in find_sites(model) if transforms else []:
        if site.index not in transforms:
            continue
        for projection in site.projections:
            if projection.kind == "experts":
                raise UserError(f"{projection.name}: an ordinary LoRA cannot target fused experts; {MERGE_INSTEAD}.")
        if transforms[site.index].factors() is None:
            raise UserError(
                f"{site.name}: a {type(transforms[site.index]).__name__} is a LoRA of full rank {site.size} only; "
                f"{MERGE_INSTEAD}, or train with transform: low_rank."
            )
    if not transforms and not existing:
        raise UserError("nothing to export as a LoRA: the connection has no transform and the base has no LoRA.")
    trained = connected.base_trained
    if trained or (trained is None and base_is_trained(connected)):
        raise UserError(
            "the base's own weights are trained, and a LoRA would not carry them; export with --format merged "
            "(merge_and_unload), or train with tune: lora. In a loop of your own, freeze the base "
            "(requires_grad_(False)) before connecting it."
        )
    return transforms


def check_vocabulary(model: nn.Module, base_name: str | None) -> None:
    """Raise `UserError` if the vocabulary size is not that of the base model `base_name` (where it can be read)."""
    rows = unwrap(model).config.get_text_config().vocab_size
    original = rows
    with suppress(*LOADING_ERRORS):
        original = AutoConfig.from_pretrained(base_name).get_text_config().vocab_size if base_name else rows
    if rows != original:
        raise UserError(
            f"the vocabulary was resized from {original} to {rows} tokens, which a LoRA for the base does not carry; "
            f"{MERGE_INSTEAD}."
        )


def existing_lora(model: nn.Module) -> dict[str, Factors]:
    """The LoRA on `model`, by module name in the unwrapped model, with the scaling in b; empty if there is none."""
    if not isinstance(model, PeftModel):
        check_adapter_mergeable(model)
        return {}
    found = {name: module for name, module in unwrap(model).named_modules() if isinstance(module, BaseTunerLayer)}
    active = plain_adapter(model)
    factors = {}
    for name, module in found.items():
        if not isinstance(module, LoraLinear):
            raise UserError(f"{name}: a {type(module).__name__} is no plain linear LoRA; {MERGE_INSTEAD}.")
        if module.merged:
            raise UserError(f"{name}: the LoRA is merged into the weights; call unmerge_adapter() first.")
        if active in module.lora_A:
            a, b = module.lora_A[active], module.lora_B[active]
            assert isinstance(a, nn.Linear) and isinstance(b, nn.Linear)
            scaling = module.scaling[active]  # alpha / r, or alpha / sqrt(r) under rsLoRA
            bias = None if b.bias is None else b.bias.detach().double() * scaling
            factors[name] = Factors(a.weight.detach(), b.weight.detach().double() * scaling, bias)
    return factors


def plain_adapter(model: PeftModel) -> str:
    """Name of the one LoRA on `model`; `UserError` if it is no LoRA that leaves the base's own weights unchanged."""
    active, unfit = model.active_adapters, None
    config: Any = model.peft_config[active[0]]
    if len(active) != 1:
        unfit = f"{len(active)} adapters are active ({', '.join(active)})"
    elif not isinstance(config, LoraConfig):
        unfit = f"it is a {config.peft_type}"
    elif config.modules_to_save or config.trainable_token_indices or config.target_parameters or config.bias != "none":
        unfit = "it trains weights of the base (modules_to_save, trainable tokens, target_parameters or bias)"
    elif config.init_lora_weights not in HARMLESS_STARTS:
        unfit = f"its initialisation ({config.init_lora_weights}) has rewritten the base's weights"
    elif config.layer_replication:
        unfit = "it replicates layers"
    if unfit:
        raise UserError(f"the adapter on the base cannot be part of a LoRA export: {unfit}; {MERGE_INSTEAD}.")
    for name, module in unwrap(model).named_modules():
        variant = getattr(module, "lora_variant", {}).get(active[0])
        if variant is not None:  # DoRA and its like are not of the form s B A
            raise UserError(f"{name}: {type(variant).__name__} is no plain LoRA; {MERGE_INSTEAD}.")
    return str(active[0])


# -- before training -------------------------------------------------------------------------------------------------


def obstacles(connected: ConnectedModel) -> dict[str, str | None]:
    """Format (`merged`, `lora`) -> why a model that is about to be trained cannot be exported so; None: it can."""
    weights = [*connected.model.parameters()]
    there = all(not p.is_meta and p.numel() and not hasattr(p, "full_tensor") for p in weights)
    exact = there and not is_quantised(connected.model) and not several_processes()
    found: dict[str, str | None] = {}
    for name in ("merged", "lora"):
        found[name] = None
        try:
            if name == "merged":
                check_merge(connected, exact)
            else:
                check_lora(connected)
                check_vocabulary(connected.model, unwrap(connected.model).config.name_or_path)
        except UserError as error:
            found[name] = str(error)
    return found


# -- the adapter's config --------------------------------------------------------------------------------------------


def _of_one_rank(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """The factors, padded with zeros to the largest rank.

    Engines scale a module whose rank is not the config's `r` differently (vLLM by alpha / r, llama.cpp by alpha over
    the module's own rank), and neither reads `alpha_pattern`. With one rank all of them scale by 1.
    """
    rank = max(len(factor.a) for factor in factors.values())
    return {
        name: Factors(pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - len(a))), bias)
        for name, (a, b, bias) in factors.items()
    }


def _config(
    base: PreTrainedModel, factors: Mapping[str, Factors], base_name: str | None, revision: str | None
) -> LoraConfig:
    """PEFT's config, with one rank and scaling 1 for all modules."""
    rank = len(next(iter(factors.values())).a)
    modules = dict(base.named_modules())
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=_ends(list(modules), set(factors)),
        lora_dropout=0.0,
        lora_bias=any(factor.bias is not None for factor in factors.values()),
        fan_in_fan_out=any(isinstance(innermost(modules[name]), Conv1D) for name in factors),
        base_model_name_or_path=base_name,
        revision=revision,
        inference_mode=True,
    )


def _ends(modules: list[str], wanted: set[str]) -> list[str]:
    """The shortest suffixes that match exactly `wanted` (servers expect names like `down_proj`); else full names."""
    for length in (1, 2):
        suffixes = {".".join(name.split(".")[-length:]) for name in wanted}
        named = {name for name in modules if any(name == end or name.endswith(f".{end}") for end in suffixes)}
        if named == wanted:
            return sorted(suffixes)
    return sorted(wanted)
