"""The plan of a forward pass, what its layers find, and how the layers' terms of the loss reach backward.

All layers of a pass follow one `Plan`, made once from the masks and labels and shared through a `Wire`. Positions are
flat indices into (B*T,), so a layer touches only the positions that connect, and FFN blocks that flatten their input
are no exception.

Gradient checkpointing runs layers a second time during backward, when the wire may hold the plan of another pass.
`restore` therefore puts the plan back, by a hook on the output, before any layer is recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cctuning.errors import UserError

if TYPE_CHECKING:
    from cctuning.connection.align import Spans


LayerMemory = tuple[Tensor, Tensor | None]  # values that are offered, and keys to find them by (attention)


@dataclass(frozen=True)
class Reference:
    """R distinct references, padded on either side to S tokens: `mask` (R, S) bool of the real tokens, and `last` (R,)
    the position of each one's last."""

    mask: Tensor
    last: Tensor

    @classmethod
    def from_mask(cls, attention_mask: Tensor) -> Reference:
        """From an attention mask (R, S) of any integer or bool type."""
        mask = attention_mask.bool()
        return cls(mask, last_real(mask))


@dataclass(frozen=True)
class Offered:
    """What references offer to the rows of a pass, whether they were recorded or run just before.

    Attributes:
        memory: layer -> what it kept of the references; empty: no row has one.
        reference: their masks, where they ran.
        pool: `align`: (K,) places of those that rows are compared with; None: all.
    """

    memory: dict[int, LayerMemory] = field(default_factory=dict)
    reference: Reference | None = None
    pool: Tensor | None = None


@dataclass
class Results:
    """What the layers of one pass found, by layer number.

    Attributes:
        memory: `record`: what a layer keeps of the references.
        objective: its term of the loss, a scalar; detached where its gradient is added to the layer's output.
        align_error, identity_error: (B,) errors of the rows, detached, 0 where nothing connects.
        share: mean of the decision, a detached scalar.
        gradient_scale: gradient of the total loss, known once backward begins.
    """

    memory: dict[int, LayerMemory] = field(default_factory=dict)
    objective: dict[int, Tensor] = field(default_factory=dict)
    align_error: dict[int, Tensor] = field(default_factory=dict)
    identity_error: dict[int, Tensor] = field(default_factory=dict)
    share: dict[int, Tensor] = field(default_factory=dict)
    gradient_scale: Tensor | None = None


@dataclass(frozen=True)
class Above:
    """The part of a batch that the layers above the last aligned one run: the first entries of one dimension.

    Attributes:
        dim: 0 (rows, or sequences of packed rows) or 1 (positions of one sequence).
        whole, count: length of that dimension, and how much of it is run.
        inputs: what the layers are given in place of their arguments of these names.
        tried: whether the arguments of the first of these layers have been found to be divisible.
    """

    dim: int
    whole: int
    count: int
    inputs: dict[str, Any] = field(default_factory=dict)
    tried: bool = False

    def of(self, given: Any) -> Any:
        """`given`, arguments of a layer, with only that part of each tensor that has the whole."""
        if isinstance(given, tuple):
            return tuple(map(self.of, given))
        is_whole = isinstance(given, Tensor) and self._has_whole(given)
        return given.narrow(self.dim, 0, self.count) if is_whole else given

    def divides(self, given: Any) -> bool:
        """Whether `of` is right for `given`: not where it holds rows in another form, such as a cache, keys and values
        of lower layers (Gemma 3n and 4), the virtual tokens of prefix tuning, or ALiBi biases (rows times heads)."""
        if isinstance(given, Tensor):
            shared = self.dim == 0 and given.shape[:1] == (1,)  # the same for all rows
            return given.dim() < 2 or shared or self._has_whole(given)
        if isinstance(given, tuple):
            return all(map(self.divides, given))
        return isinstance(given, bool | int | float | str | None) or (isinstance(given, Mapping) and not given)

    def _has_whole(self, given: Tensor) -> bool:
        shape = given.shape
        return len(shape) > 1 and shape[self.dim] == self.whole and (self.dim == 0 or shape[0] == 1)


@dataclass
class Plan:
    """What the layers of one forward pass do. B rows of T positions; N connected positions; all indices int64.

    Attributes:
        mode: `record` (a reference pass: remember, change nothing), `connect`, `align` (pooled rows against their
            references), or `rest` (no layer does anything).
        rows: B; positions: T.
        row_of: (N,) row of each flat position, where rows run packed; None: T positions a row, in order.
        transform_index: (M,) positions where the transform acts; None for everywhere.
        connect_index, connect_row, connect_reference: (N,) each: position, its row, its row's reference. `align` has
            the last alone, of each row (B,).
        fused: (B,) bool, rows on the fused path; None where no row is.
        identity_index, identity_row: positions where the transform is taught the identity, and their rows.
        row_weight: (B,) fp32 share of each row in the alignment objective; None: no objective in this pass.
        identity_weight: weight of the identity error within it.
        spans: `record` and `align` of pooled rows: the positions that are averaged.
        stop: the forward ends after the last aligned layer. above: what the layers above it run; None: everything.
        reference: `record`: masks of the references that run.
        offered: what the references offer.
        injection: (N, d), adaptive connection: added after the first layer at `connect_index`.
    """

    mode: str
    rows: int
    positions: int
    row_of: Tensor | None = None
    transform_index: Tensor | None = None
    connect_index: Tensor | None = None
    connect_row: Tensor | None = None
    connect_reference: Tensor | None = None
    fused: Tensor | None = None
    identity_index: Tensor | None = None
    identity_row: Tensor | None = None
    row_weight: Tensor | None = None
    identity_weight: float = 1.0
    spans: Spans | None = None
    stop: bool = False
    above: Above | None = None
    reference: Reference | None = None
    offered: Offered = field(default_factory=Offered)
    injection: Tensor | None = None
    results: Results = field(default_factory=Results)

    def check(self, activation: Tensor, layer: int) -> None:
        """Raise `UserError` unless `activation` (..., d) of a layer is one vector for each position of the pass."""
        expected = self.rows * self.positions if self.row_of is None else len(self.row_of)
        if activation.shape[:-1].numel() != expected:
            raise UserError(
                f"layer {layer}: expected an activation of one vector for each of {expected} positions, got shape "
                f"{tuple(activation.shape)}: a model with several residual streams is connected at its FFN blocks; "
                "set align_at: ffn, or connection: gated."
            )


class Wire:
    """What the layers of a model share: the plan of the running pass."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.enabled = True


class _Carry(torch.autograd.Function):
    """Identity on a layer's output that adds the gradient of the layer's error in backward, scaled as the loss is.

    A loss collected on the side has no gradient under reentrant checkpointing, and is collected twice under either
    kind; a gradient that rides on the output has neither fault (as MoE models do for their auxiliary loss).
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, error: Tensor, results: Results) -> Tensor:
        ctx.results = results
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return gradient, ctx.results.gradient_scale, None


def restore(value: Tensor, wire: Wire, plan: Plan) -> Tensor:
    """`value`, with `plan` put back on `wire` when its backward begins, which is before that of any layer upstream."""

    def put_back(gradient: Tensor) -> None:
        wire.plan = plan

    if value.requires_grad:
        value.register_hook(put_back)
    return value


def add_objective(output: Tensor, objective: Tensor, plan: Plan, layer: int) -> Tensor:
    """Add a layer's term of the loss, a scalar with its graph: the value to the results, the gradient to `output`.

    In a pass that stops early no loss is computed from the output, so the term keeps its graph in the results.
    """
    plan.results.objective[layer] = objective if plan.stop else objective.detach()
    return output if plan.stop else _Carry.apply(output, objective, plan.results)


def total(lm: Tensor, plan: Plan) -> Tensor:
    """The whole loss: `lm` (a scalar with graph) plus the terms of the layers, by `add_objective`.

    Its gradient, known once backward begins, scales those of the terms.
    """
    loss = lm + torch.stack(list(plan.results.objective.values())).sum()

    def keep(gradient: Tensor) -> None:
        plan.results.gradient_scale = gradient

    if loss.requires_grad:
        loss.register_hook(keep)
    return loss


def predicting(labels: Tensor) -> Tensor:
    """(B, T) bool: positions whose next token carries loss."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != -100
    return mask


def answering(attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
    """(B, T) bool: positions that predict an answer token, in rows without labels.

    Args:
        attention_mask: (B, T), padded on the right. prompt_lengths: (B,) tokens of the prompt before the answer.
    """
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    real = attention_mask.bool()
    followed = torch.nn.functional.pad(real[:, 1:], (0, 1), value=False)
    return real & followed & (places >= prompt_lengths[:, None] - 1)


def last_real(mask: Tensor) -> Tensor:
    """Position (R,) of the last true entry of each row of `mask` (R, S)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).argmax(dim=1) if mask.shape[1] else mask.new_zeros(mask.shape[0], dtype=torch.long)


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
