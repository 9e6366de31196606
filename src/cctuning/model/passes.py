"""From a batch to the inputs of its pass: which rows run, which of them fused, and what each layer does where.

All rows of a step, whichever path they take, run in one forward of the model: distributed wrappers then see one
forward and one backward a step, and gradient checkpointing has one plan to come back to.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import Spans, spans
from cctuning.connection.plan import Above, Offered, Plan, predicting, prompt_ends, scope_mask
from cctuning.errors import UserError


@dataclass
class Batch:
    """A batch as `PairedCollator` returns it. B rows of T tokens, R distinct references of S tokens.

    Attributes:
        input_ids, attention_mask: (B, T), right-padded in training. labels: (B, T), -100 where no loss is; a row
            without any has no response and trains the alignment alone. None at inference.
        reference_input_ids, reference_attention_mask: (R, S) the references, each ending where its prompt ends.
        reference_index: (B,) reference of each row, -1 for none (a row in the reference language); default: one
            reference a row, in order.
        reference_row: (B,) recorded reference of each row, -1 for none; replaces the three above after
            `keep_recorded`.
        text, reference_text: (B, 2) and (R, 2) first position of each prompt's own text and the one after its last;
            default: from the second token to the prompt's end.
        row: (B,) row ids, for the draw of `paths: sampled`; default 0..B-1.
        connect: (B,) bool, inference: rows that are not in the reference language; default all. Read by the adaptive
            connection where no reference is given; a gated one answers alike either way.
        fused_rows: (B,) bool, rows on the fused path, in place of that draw.
    """

    input_ids: Tensor
    attention_mask: Tensor = None  # type: ignore[assignment]  # these defaults are filled in
    labels: Tensor | None = None
    reference_input_ids: Tensor | None = None
    reference_attention_mask: Tensor | None = None
    reference_index: Tensor = None  # type: ignore[assignment]
    reference_row: Tensor | None = None
    text: Tensor | None = None
    reference_text: Tensor | None = None
    row: Tensor = None  # type: ignore[assignment]
    connect: Tensor | None = None
    fused_rows: Tensor | None = None

    def __post_init__(self) -> None:
        rows, device = self.input_ids.shape[0], self.input_ids.device
        if self.attention_mask is None:
            self.attention_mask = torch.ones_like(self.input_ids)
        if self.row is None:
            self.row = torch.arange(rows, device=device)
        references = self.reference_input_ids
        if references is None or references.shape[0] == 0:
            self.reference_input_ids = self.reference_attention_mask = None
            if self.reference_row is None or self.reference_index is None:
                self.reference_index = torch.full((rows,), -1, device=device)
            return
        if self.reference_attention_mask is None:
            self.reference_attention_mask = torch.ones_like(references)
        if self.reference_index is None:
            if references.shape[0] != rows:
                raise UserError(
                    f"reference_input_ids has {references.shape[0]} rows and input_ids {rows}: expected one reference "
                    "a row, or reference_index with the reference of each row (-1: none)."
                )
            self.reference_index = torch.arange(rows, device=device)
        if self.reference_index.shape != (rows,) or int(self.reference_index.max()) >= references.shape[0]:
            raise UserError(
                f"reference_index: expected {rows} numbers below {references.shape[0]}, got "
                f"{self.reference_index.tolist()}."
            )

    @classmethod
    def take(cls, inputs: dict[str, Any], **own: Any) -> Batch:
        """From `own` and those of `inputs` that are a batch's, which are removed from it."""
        return cls(**own, **{field.name: inputs.pop(field.name) for field in fields(cls) if field.name in inputs})

    def ordered(self, order: Tensor) -> Batch:
        """Its rows in another order (B,)."""
        names = ("input_ids", "attention_mask", "labels", "reference_index", "reference_row", "text", "row")
        given = {name: getattr(self, name) for name in names}
        return replace(self, **{name: value[order] for name, value in given.items() if value is not None})

    @property
    def paired(self) -> Tensor:
        """(B,) bool: rows that have a reference."""
        return self.reference_index >= 0

    @property
    def inputs(self) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, as a transformers model takes them."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def prompt_spans(pool: str, mask: Tensor, text: Tensor | None, predict: Tensor | None = None) -> Spans:
    """The positions that `align_pool` averages of prompts with attention `mask` (B, T); `text` as in `Batch`,
    `predict` as in `prompt_ends`."""
    last = prompt_ends(mask, predict)
    if text is None:
        text = torch.stack([(last > 0).long(), last + 1], dim=1)
    return spans(pool, text[:, 0], text[:, 1], last, mask.shape[1])


@dataclass
class Step:
    """The inputs of one forward with labels. A running rows; each is a copy of a row of the batch.

    Attributes:
        input_ids, attention_mask: (A, T). plan: what the layers do.
        source: (A,) row of the batch. on_fused: (A,) bool, runs the fused pass.
        score: (A, T) bool, positions whose logits are needed. predict: those among them with LM loss.
        trains: the loss is the training objective; else the student pass's LM loss alone.
        rows: number of rows that the alignment is averaged over.
    """

    input_ids: Tensor
    attention_mask: Tensor
    plan: Plan
    source: Tensor
    on_fused: Tensor
    score: Tensor
    predict: Tensor
    trains: bool
    rows: Tensor | int


def uniform(seed: int, step: int, rows: Tensor) -> Tensor:
    """A number in [0, 1) for each row id (B,), the same whatever batch, process or restart the row comes in.

    A stateless hash (the finaliser of splitmix64) and not a generator: nothing to save, and a row's draw does not
    depend on its neighbours.
    """
    offset = (seed * 1_000_003 + step) * 0x9E3779B97F4A7C15 % (1 << 64)  # 64-bit golden ratio
    x = rows.long() + (offset - (1 << 64) if offset >= 1 << 63 else offset)  # torch's integers are signed, and wrap
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x >> 11) & ((1 << 53) - 1)).double() / float(1 << 53)


def plan_step(batch: Batch, config: ConnectionConfig, rows: Tensor | int, *, training: bool) -> Step:
    """Lay out a forward with labels, of any connection but `align`.

    Args:
        rows: number of rows that the alignment is averaged over.
        training: False: every row runs the student pass, and paired rows the fused one too, to be reported.
    """
    assert batch.labels is not None
    predict = predicting(batch.labels)
    answered, paired = predict.any(dim=1), batch.paired
    source = torch.arange(len(paired), device=paired.device)
    on_fused = torch.zeros_like(paired)
    if config.connection != "none" and (config.paths == "both" or not training):
        twice = source[paired & (answered | (config.distill_weight > 0))]
        source = torch.cat([twice, source])
        on_fused = torch.arange(len(source), device=paired.device) < len(twice)
    elif config.paths == "fused":
        on_fused = paired & answered
    elif config.paths == "sampled" and batch.fused_rows is not None:
        on_fused = batch.fused_rows & paired & answered
    score = predict
    if config.distill_weight > 0:  # an answer-free row teaches through the next-token distribution at its prompt's end
        score = predict | (scope_mask("prompt_end", batch.attention_mask, predict) & ~answered[:, None])
    plan = _plan(batch, config, predict, source, on_fused)
    if config.connection == "gated" and config.weight > 0:
        copies = torch.bincount(source, minlength=len(paired))[source]
        plan.row_weight = 1.0 / (torch.as_tensor(rows, device=copies.device) * copies)
        plan.identity_weight = config.identity_weight
    mask = batch.attention_mask[source]
    return Step(batch.input_ids[source], mask, plan, source, on_fused, score[source], predict[source], training, rows)


def plan_aligned_step(batch: Batch, config: ConnectionConfig, rows: Tensor | int, *, skip: bool, end: bool) -> Step:
    """Lay out a forward of training for `connection: align`: every row once; paired ones weigh 1 / `rows`.

    Args:
        skip: rows without an answer may skip the layers above the last aligned one; the others then come first. One
            row goes on if none has an answer, so that the loss has a graph through the whole model.
        end: the forward may end after that layer instead where no row has an answer.
    """
    assert batch.labels is not None
    answered = predicting(batch.labels).any(dim=1)
    order = (~answered).int().argsort(stable=True) if skip else torch.arange(len(answered), device=answered.device)
    batch = batch.ordered(order)
    assert batch.labels is not None
    predict = predicting(batch.labels)
    plan = Plan("align", *batch.input_ids.shape)
    if config.weight > 0 and bool(batch.paired.any()):
        plan.row_weight = batch.paired / torch.as_tensor(rows, device=order.device)
        plan.connect_reference = batch.reference_index.clamp(min=0)
        plan.spans = prompt_spans(config.align_pool, batch.attention_mask, batch.text, predict)
        whole = int(answered.sum())
        plan.stop = end and whole == 0
        if skip and not plan.stop and max(1, whole) < plan.rows:
            plan.above = Above(0, plan.rows, max(1, whole))
    fused = torch.zeros_like(batch.paired)
    return Step(batch.input_ids, batch.attention_mask, plan, order, fused, predict, predict, True, rows)


def plan_inference(batch: Batch, config: ConnectionConfig, predict: Tensor | None = None) -> Plan:
    """The plan of a forward without labels: paired rows run fused (the live connection), the others as students.

    `predict` (B, T) marks positions that predict an answer token; None: the prompts have no answer yet.
    """
    every = torch.arange(batch.input_ids.shape[0], device=batch.input_ids.device)
    if config.connection == "align":
        return Plan("rest", *batch.input_ids.shape)
    return _plan(batch, config, predict, every, batch.paired)


def _plan(batch: Batch, config: ConnectionConfig, predict: Tensor | None, source: Tensor, on_fused: Tensor) -> Plan:
    mask = batch.attention_mask
    rows, positions = source.shape[0], mask.shape[1]
    transform = scope_mask(config.scope, mask, predict)
    connect = scope_mask(config.where_fused, mask, predict) & batch.paired[:, None]
    identity = transform & ~connect
    plan = Plan("connect", rows, positions)
    if config.scope != "all":
        plan.transform_index = flat_index(transform[source])[0]
    plan.connect_index, plan.connect_row = flat_index(connect[source])
    plan.connect_reference = batch.reference_index[source][plan.connect_row]
    plan.identity_index, plan.identity_row = flat_index(identity[source])
    if config.paths != "student" or bool(on_fused.any()):
        plan.fused = on_fused
    return plan


def flat_index(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions (N,) and rows (N,) of the true entries of `mask` (A, T)."""
    row, position = mask.nonzero(as_tuple=True)
    return row * mask.shape[1] + position, row


class GenerationPlanner:
    """Plans for the forwards of one `generate`: the prefill first, then a step a token (or several, where an assistant
    proposes them; the first may come with the prefill).

    The prompts are left-padded, so a prompt's end is the last position of the prefill. Rows may be repeated by beam
    search or several return sequences, always in blocks.
    """

    def __init__(
        self, config: ConnectionConfig, attention_mask: Tensor, index: Tensor, offered: Offered | None
    ) -> None:
        """
        Args:
            index: (B,) reference of each row, -1 for none. offered: what the references offer; None: they do not run.
        """
        self.config, self.mask, self.index, self.offered = config, attention_mask, index, offered
        self.prefilled = False

    def __call__(self, rows: int, positions: int) -> Plan:
        """The plan of the next forward, over `rows` x `positions` new tokens."""
        config, width = self.config, self.mask.shape[1]
        if self.prefilled and config.scope == "prompt_end":  # it is behind us: decode as the base model does
            return Plan("rest", rows, positions)
        repeat = rows // self.mask.shape[0]
        prompt = self.mask[:, :0] if self.prefilled else self.mask
        if not self.prefilled and positions < width and (config.scope != "all" or self.offered is not None):
            raise UserError(
                "generate: the prompt is not run at once (prefill_chunk_size, or a cache of its beginning), and the "
                "connection cannot tell its end; leave those options out."
            )
        self.prefilled = True
        prompt = prompt.repeat_interleave(repeat, dim=0)

        def mask(scope: str) -> Tensor:
            """(rows, positions) bool: those of `scope`, over the prompt and the tokens of the answer."""
            answer = prompt.new_full((rows, positions - prompt.shape[1]), scope != "prompt_end").bool()
            return torch.cat([scope_mask(scope, prompt, None), answer], dim=1) if prompt.shape[1] else answer

        plan = Plan("connect", rows, positions)
        if config.scope != "all":
            plan.transform_index = flat_index(mask(config.scope))[0]
        if self.offered is not None:
            which = self.index.repeat_interleave(repeat)
            plan.connect_index, plan.connect_row = flat_index(mask(config.where_fused) & (which >= 0)[:, None])
            plan.connect_reference = which[plan.connect_row]
            plan.fused, plan.offered = which >= 0, self.offered
        return plan
