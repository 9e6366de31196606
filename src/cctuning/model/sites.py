"""Find the FFN of each decoder layer, and the weights that produce its output.

One rule covers most of transformers: the decoder's layers are the shallowest `ModuleList` of `num_hidden_layers`
entries, the FFN is a child of the layer with one of a few exact names, and its output comes from modules with one of a
few exact names (or from a fused 3-D expert weight).

The connection acts on the output of the FFN block, not of its projection: a LoRA on the projection is then part of
what the connection sees, and an MoE block is one activation and not one per expert. A merge multiplies every
projection of the block, which is exact because the block's output is linear in all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cctuning.errors import UserError

# Exact names: a substring match would find GPT-NeoX's `post_mlp_dropout`.
BLOCK_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mlp_block", "shared_mlp")  # first one wins
PROJECTION_NAMES = ("down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "output_linear")
EXPERT_WEIGHT = "down_proj"  # of fused experts: (E, d, d_ff), or (E, d_ff, d) where transposed
LOOPS = ("n_recurrent_loops", "loop_num_passes")  # of a config: how often a forward runs some of the layers
QUANTISED_WEIGHTS = ("qweight", "down_proj_blocks")  # names under which GPTQ/AWQ and MXFP4 keep their packed weights


class Family(NamedTuple):
    """What the rule does not find out about a family."""

    block: str | None = None  # path from the layer to the module whose output is the activation
    transposed: bool | None = None  # layout of its fused experts
    in_place: bool = False  # the layer writes into the activation it is given


EXCEPTIONS = {
    "bloom": Family("mlp.dense_4h_to_h"),  # the FFN block adds the residual itself
    "mpt": Family("ffn.down_proj"),
    "opt": Family("fc2"),  # the layer holds its FFN's matrices without a block around them
    "xglm": Family("fc2"),
    "biogpt": Family("fc2"),
    "falcon": Family(in_place=True),  # its layer adds the attention's output to the FFN's in place
    "llama4_text": Family(transposed=True),  # its experts have no attribute that says they are stored (E, d_ff, d)
}


@dataclass(frozen=True)
class Projection:
    """A weight that produces (part of) a block's output.

    Attributes:
        name: dotted path of the module from the unwrapped transformers model.
        module: the module; a PEFT layer where one is injected.
        kind: `linear` (weight (d, d_ff)), `conv1d` (weight (d_ff, d)) or `experts` (fused, 3-D).
        weight, bias: names of the parameters on `module` (on its innermost base layer under PEFT).
        transposed: experts only: the weight is (E, d_ff, d) and not (E, d, d_ff).
    """

    name: str
    module: nn.Module
    kind: str
    weight: str
    bias: str | None
    transposed: bool


@dataclass(frozen=True)
class Site:
    """Where a connection acts in one decoder layer.

    Attributes:
        index: the layer's number.
        name: dotted path of the layer from the unwrapped model.
        layer: the decoder layer; the connection is registered inside it.
        block: the module whose output is the FFN activation, before any norm or residual that follows.
        size: d, the width of that activation.
        projections: the projections that a merge multiplies.
        in_place: the layer writes into the block's output, so hooks must keep and return copies.
    """

    index: int
    name: str
    layer: nn.Module
    block: nn.Module
    size: int
    projections: tuple[Projection, ...]
    in_place: bool = False


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`: a PEFT model's base (adapters stay injected), any other unchanged."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise UserError(
            f"model: expected a transformers PreTrainedModel (or a PEFT model around one), got "
            f"{type(model).__name__}; load it with AutoModelForCausalLM."
        )
    return base


def innermost(module: nn.Module) -> nn.Module:
    """The base layer of `module` inside PEFT layers."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def is_quantised(model: nn.Module) -> bool:
    """Whether the base's weights are quantised, by any method of transformers."""
    base: Any = unwrap(model)
    quantised = getattr(base, "hf_quantizer", None), getattr(base.config, "quantization_config", None)
    return any(found is not None for found in quantised)


def text_parts(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the parts of a multimodal model that text runs through: decoder and output embedding; {} for others."""
    base = unwrap(model)
    if base.config.get_text_config() is base.config:
        return {}
    parts = base.get_decoder(), base.get_output_embeddings()
    return {name: module for name, module in base.named_modules() if module in parts}


def find_sites(model: nn.Module) -> list[Site]:
    """One site per decoder layer, in order.

    Raises:
        UserError: the family is not supported; the message gives the reason.
    """
    base = unwrap(model)
    text = base.config.get_text_config()
    family = text.model_type
    if family == "rwkv":
        raise _unsupported(family, "its FFN's output is multiplied by a gate computed from the FFN's input")
    if base.config.is_encoder_decoder:
        raise _unsupported(family, "it is an encoder-decoder; the connection needs a decoder-only model")
    if family == "bloom" and text.pretraining_tp > 1 and text.slow_but_exact:
        raise _unsupported(
            family, "slow_but_exact bypasses the modules of its FFN; set slow_but_exact=False in its config"
        )
    if any(getattr(text, name, 1) > 1 for name in LOOPS):
        raise _unsupported(family, "it runs some of its layers several times in a forward")
    names = {id(module): name for name, module in base.named_modules()}
    sites = [_site(base, family, index, names[id(layer)], layer) for index, layer in enumerate(_layers(base, family))]
    modules = [id(projection.module) for site in sites for projection in site.projections]
    if len(set(modules)) < len(modules):
        raise _unsupported(
            family, "several of its layers share one FFN, so the transform of one layer cannot be merged"
        )
    return sites


def _layers(base: PreTrainedModel, family: str) -> nn.ModuleList:
    number = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    decoder = base.get_decoder()
    lists = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [(name.count("."), order, module) for order, (name, module) in enumerate(lists) if len(module) == number]
    if not fitting:
        raise _unsupported(family, f"its decoder has no ModuleList of num_hidden_layers = {number} entries")
    return min(fitting, key=lambda found: found[:2])[2]


def _site(base: PreTrainedModel, family: str, index: int, name: str, layer: nn.Module) -> Site:
    exception = EXCEPTIONS.get(family, Family())
    children = dict(layer.named_children())
    path = exception.block or next((name for name in BLOCK_NAMES if name in children), None)
    if path is None:
        raise _unsupported(
            family, f"layer {index} ({type(layer).__name__}) has no FFN: no child is named {', '.join(BLOCK_NAMES)}"
        )
    block = layer.get_submodule(path)
    hidden = base.config.get_text_config().hidden_size
    projections = tuple(
        projection
        for inner, module in block.named_modules(prefix=f"{name}.{path}")
        if (projection := _projection(family, inner, module, hidden, exception.transposed)) is not None
    )
    if not projections:
        raise _unsupported(
            family,
            f"layer {index}'s FFN ({type(block).__name__}) has no output projection named "
            f"{', '.join(PROJECTION_NAMES)}, and no fused experts",
        )
    return Site(index, name, layer, block, hidden, projections, exception.in_place)


def _projection(family: str, name: str, module: nn.Module, hidden: int, transposed: bool | None) -> Projection | None:
    """`module` as an output projection; None if it is not one."""
    last = name.rpartition(".")[2]
    if last == "base_layer":  # seen already, as its PEFT layer
        return None
    core = innermost(module)
    fused = getattr(core, EXPERT_WEIGHT, None)
    if isinstance(fused, nn.Parameter) and fused.dim() == 3:
        bias = EXPERT_WEIGHT + "_bias"
        flag = transposed if transposed is not None else getattr(core, "is_transposed", None)
        rows, columns = fused.shape[1:]
        if flag is None and hidden in (rows, columns) and rows != columns:
            flag = columns == hidden
        if flag is None or (columns if flag else rows) != hidden:
            raise _unsupported(
                family, f"the layout of {name}.{EXPERT_WEIGHT} {tuple(fused.shape)} is unknown for d = {hidden}"
            )
        has_bias = isinstance(getattr(core, bias, None), nn.Parameter)
        return Projection(name, module, "experts", EXPERT_WEIGHT, bias if has_bias else None, flag)
    packed = next((attribute for attribute in QUANTISED_WEIGHTS if hasattr(core, attribute)), None)
    if packed == "down_proj_blocks":
        return Projection(name, module, "experts", packed, None, False)
    if last not in PROJECTION_NAMES:
        return None
    if packed is not None or isinstance(core, (nn.Linear, Conv1D)):
        if getattr(core, "out_features", getattr(core, "nf", hidden)) != hidden:  # a router's inner layer (Zaya)
            return None
        has_bias = getattr(core, "bias", None) is not None
        kind = "conv1d" if isinstance(core, Conv1D) else "linear"
        return Projection(name, module, kind, packed or "weight", "bias" if has_bias else None, False)
    return None


def _unsupported(family: str, reason: str) -> UserError:
    return UserError(
        f"model family {family}: not supported: {reason}. The connection needs a decoder-only model "
        "with one FFN a layer."
    )
