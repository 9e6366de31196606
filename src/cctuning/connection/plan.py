"""The plan of one forward pass: who connects to whom, where, and what the error of it weighs.

Every layer of a pass follows the same plan, so it is worked out once, from the masks and labels, and handed to the
layers through a shared `Wire`. Positions are flat indices into (B*T,): that serves FFN blocks that flatten their
input as well as those that do not, and lets a layer touch only the positions that connect.

Gradient checkpointing runs layers a second time during backward, when the wire may already carry another pass. So the
plan travels with the autograd graph too: `restore` puts it back on the wire before any layer of its pass is
recomputed, whichever kind of checkpointing does it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cctuning.connection.pooled import Offered
from cctuning.connection.references import LayerMemory, Reference, last_real


@dataclass
class Plan:
    """What the layers of one forward pass do. B rows of T positions; N connected positions; all indices int64.

    Attributes:
        mode: `record` (a reference pass: remember, change nothing), `connect`, `align` (pooled rows against their
            references), or `rest` (no layer does anything).
        rows: B; positions: T.
        transform_index: (M,) positions where the transform acts; None for everywhere.
        connect_index, connect_row, connect_reference: (N,) each: position, its row, its row's reference.
        fused: (B,) bool, rows on the fused path; None where no row is.
        identity_index, identity_row: positions where the transform is taught the identity, and their rows.
        row_weight: (B,) fp32 share of each row in the alignment objective; None: no objective in this pass.
        identity_weight: weight of the identity error within it.
        spans: (B, T) fp32, `record` and `align` of pooled rows: weights of the positions; None otherwise.
        offered: `align`: layer -> what its rows are aligned to.
        stop: the forward ends after the last layer that is aligned: nothing above it is wanted.
        objective: `align` with `stop`: layer -> its part of the objective, with its graph.
        reference: masks of the reference batch; memory: what each layer kept of it, or was recorded before.
        reference_rows: where the references run in this same batch (gradient through the reference): the number of
            rows before them; None otherwise.
    """

    mode: str
    rows: int
    positions: int
    transform_index: Tensor | None = None
    connect_index: Tensor | None = None
    connect_row: Tensor | None = None
    connect_reference: Tensor | None = None
    fused: Tensor | None = None
    identity_index: Tensor | None = None
    identity_row: Tensor | None = None
    row_weight: Tensor | None = None
    identity_weight: float = 1.0
    spans: Tensor | None = None
    offered: dict[int, Offered] = field(default_factory=dict)
    stop: bool = False
    objective: dict[int, Tensor] = field(default_factory=dict)
    reference: Reference | None = None
    reference_rows: int | None = None
    injection: Tensor | None = None  # (N, d), adaptive connection: added after the first layer at `connect_index`
    memory: dict[int, LayerMemory] = field(default_factory=dict)
    align_error: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B,) detached, 0 where nothing connects
    identity_error: dict[int, Tensor] = field(default_factory=dict)
    share: dict[int, Tensor] = field(default_factory=dict)  # layer -> mean of the decision, detached scalar
    gradient_scale: Tensor | None = None  # gradient of the total loss, known once backward begins


class Wire:
    """What the layers of a model share: the plan of the running pass. Not a module; copied with the model."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.enabled = True


class _Restore(torch.autograd.Function):
    """Identity. Its backward runs before that of every layer upstream of it, and puts the plan back on the wire."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, wire: Wire, plan: Plan) -> Tensor:
        ctx.wire, ctx.plan = wire, plan
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.wire.plan = ctx.plan
        return gradient, None, None


class _Total(torch.autograd.Function):
    """`lm + error`; tells the plan the gradient of the sum, by which the layers scale their errors' gradients."""

    @staticmethod
    def forward(ctx: Any, lm: Tensor, error: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return lm + error

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.plan.gradient_scale = gradient
        return gradient, None, None


class _Carry(torch.autograd.Function):
    """Identity on a layer's output that carries the layer's error into backward, scaled as the total loss is.

    A loss collected on the side has no gradient under reentrant checkpointing, and is collected twice under either
    kind; a gradient that rides on the output has neither fault (the idiom MoE models use for their auxiliary loss).
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, error: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return gradient, ctx.plan.gradient_scale, None


def restore(value: Tensor, wire: Wire, plan: Plan) -> Tensor:
    """`value`, with `plan` back on `wire` when its backward begins."""
    return _Restore.apply(value, wire, plan)


def total(lm: Tensor, error: Tensor, plan: Plan) -> Tensor:
    """The whole objective: `lm` (scalar, with graph) plus `error` (scalar, detached; layers carry its gradient)."""
    return _Total.apply(lm, error, plan)


def carry(output: Tensor, error: Tensor, plan: Plan) -> Tensor:
    """`output`, with the gradient of the scalar `error` added in backward."""
    return _Carry.apply(output, error, plan)


def predicting(labels: Tensor) -> Tensor:
    """(B, T) bool: positions whose next token carries loss."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != -100
    return mask


def answering(attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
    """(B, T) bool: positions that predict an answer token, where prompts of `prompt_lengths` (B,) real tokens are
    followed by answers and padded on the right: what `predicting` reads off labels, for scoring without them."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    real = attention_mask.bool()
    followed = torch.nn.functional.pad(real[:, 1:], (0, 1), value=False)
    return real & followed & (places >= prompt_lengths[:, None] - 1)


def prompt_ends(attention_mask: Tensor, predict: Tensor | None) -> Tensor:
    """(B,) position of each prompt's last token: the first that predicts a token of the response, else the last real.

    The response is the last run of predicted tokens: those before it are earlier turns of a conversation.
    """
    last = last_real(attention_mask.bool())
    if predict is None:
        return last
    starts = predict.clone()
    starts[:, 1:] &= ~predict[:, :-1]
    places = torch.arange(predict.shape[1], device=predict.device)
    start = torch.where(starts, places, -1).amax(dim=1)
    return torch.where(start >= 0, start, last)


def scope_mask(scope: str, attention_mask: Tensor, predict: Tensor | None) -> Tensor:
    """(B, T) bool: the positions of `scope` (`prompt_end`, `response` or `all`).

    Args:
        attention_mask: (B, T).
        predict: (B, T) from `predicting`, or None where there are no labels: the response then starts at the last
            real token.
    """
    real = attention_mask.bool()
    if scope == "all":
        return real
    end = prompt_ends(attention_mask, predict)[:, None]
    places = torch.arange(real.shape[1], device=real.device)
    chosen = places == end
    if scope == "response" and predict is not None:
        chosen = chosen | (predict & (places > end))
    return chosen & real


def row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sums of `values` (N,) over the positions of each of `count` rows: (count,)."""
    return values.new_zeros(count).index_add(0, rows, values)
