"""From a batch to the inputs of its pass: which rows run, which of them fused, and what each layer does where.

A training step differs from plain SFT only in what is decided here, once a step, in a few small index tensors. All
rows of a step, whichever path they take, run in one forward of the model: distributed wrappers then see one forward
and one backward a step, and there is one plan for checkpointing to come back to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cctuning.connection import ConnectionConfig, Plan, Spans, predicting, prompt_ends, scope_mask, spans
from cctuning.errors import UserError
from cctuning.model.packing import Packed


@dataclass
class Batch:
    """A batch as `PairedCollator` returns it. B rows of T tokens, R distinct references of S tokens.

    Attributes:
        input_ids, attention_mask: (B, T). labels: (B, T), -100 where no loss; None at inference.
        reference_ids, reference_mask: (R, S); None where no reference is given.
        reference_index: (B,) row of the references that belongs to each row; -1 for rows without one.
        reference_row: (B,) number of each row's recorded reference, -1 for none; None: nothing is recorded.
        text, reference_text: (B, 2) and (R, 2) span of a prompt's own text, first position and the one after its last;
            None: from the second token to the prompt's end.
        row: (B,) ids of the rows, for random draws. connect: see `ConnectedModel.generate`.
        fused: (B,) bool, `paths: sampled`: rows that are drawn for the fused pass.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    reference_ids: Tensor | None
    reference_mask: Tensor | None
    reference_index: Tensor
    reference_row: Tensor | None = None
    text: Tensor | None = None
    reference_text: Tensor | None = None
    row: Tensor | None = None
    connect: Tensor | None = None
    fused: Tensor | None = None

    @classmethod
    def build(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        reference_ids: Tensor | None,
        reference_mask: Tensor | None,
        reference_index: Tensor | None,
        **more: Tensor | None,
    ) -> Batch:
        """Fill in what a caller may leave out, and check the shapes; `more` are the other attributes.

        Raises:
            UserError: the references cannot be matched with the rows.
        """
        rows = input_ids.shape[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if reference_ids is not None and reference_ids.shape[0] == 0:
            reference_ids = reference_mask = None
        if reference_ids is None:
            reference_index = torch.full((rows,), -1, device=input_ids.device)
        else:
            if reference_mask is None:
                reference_mask = torch.ones_like(reference_ids)
            if reference_index is None:
                if reference_ids.shape[0] != rows:
                    raise UserError(
                        f"reference_input_ids has {reference_ids.shape[0]} rows and input_ids {rows}: expected one "
                        "reference a row, or reference_index with the reference of each row (-1: none)."
                    )
                reference_index = torch.arange(rows, device=input_ids.device)
            if reference_index.shape != (rows,) or int(reference_index.max()) >= reference_ids.shape[0]:
                raise UserError(
                    f"reference_index: expected {rows} numbers below {reference_ids.shape[0]}, got "
                    f"{reference_index.tolist()}."
                )
        if more.get("row") is None:
            more["row"] = torch.arange(rows, device=input_ids.device)
        return cls(input_ids, attention_mask, labels, reference_ids, reference_mask, reference_index, **more)

    def spans(self, pool: str) -> Spans:
        """The positions of each prompt that `align_pool` averages."""
        predict = None if self.labels is None else predicting(self.labels)
        last = prompt_ends(self.attention_mask, predict)
        text = _text(self.text, last)
        return spans(pool, text[:, 0], text[:, 1], last, self.input_ids.shape[1])

    def reference_spans(self, pool: str) -> Spans:
        """Those of each reference."""
        assert self.reference_mask is not None
        last = prompt_ends(self.reference_mask, None)
        text = _text(self.reference_text, last)
        return spans(pool, text[:, 0], text[:, 1], last, self.reference_mask.shape[1])

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> Batch:
        """From the tensors of `PairedCollator`, by their names there."""
        names = ("attention_mask", "labels", "reference_input_ids", "reference_attention_mask", "reference_index")
        more = {name: inputs.get(name) for name in ("text", "reference_text", "row", "reference_row")}
        return cls.build(inputs["input_ids"], *(inputs.get(name) for name in names), **more)

    @classmethod
    def prompts(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        reference_ids: Tensor | None,
        reference_mask: Tensor | None,
        reference_index: Tensor | None,
        connect: Tensor | None = None,
    ) -> Batch:
        """Prompts to be answered: as `build`, but padded on the left, so that each ends at the last position.

        Raises:
            UserError: they are padded on the right, or the references cannot be matched with them.
        """
        references = (reference_ids, reference_mask, reference_index)
        batch = cls.build(input_ids, attention_mask, None, *references, connect=connect)
        if not bool(batch.attention_mask[:, -1].all()):
            raise UserError("generate: prompts are padded on the right; set tokenizer.padding_side = 'left'.")
        return batch

    @property
    def paired(self) -> Tensor:
        """(B,) bool: rows that have a reference."""
        return self.reference_index >= 0

    @property
    def inputs(self) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, as a transformers model takes them."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    @property
    def ids(self) -> Tensor:
        """(B,) `row`, filled in."""
        assert self.row is not None
        return self.row


def _text(given: Tensor | None, last: Tensor) -> Tensor:
    """(B, 2) spans of prompts that end at `last` (B,)."""
    return torch.stack([(last > 0).long(), last + 1], dim=1) if given is None else given


@dataclass
class Step:
    """The inputs of one forward with labels. A running rows; each is a copy of a row of the batch.

    Attributes:
        input_ids, attention_mask: (A, T). plan: what the layers do.
        source: (A,) row of the batch. on_fused: (A,) bool, runs the fused pass.
        score: (A, T) bool, positions whose logits are needed. predict: those among them with LM loss.
        trains: the loss is the training objective; else the student pass's LM loss alone.
        packed: the layout that the model runs, of which the plan is; None: the padded rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    plan: Plan
    source: Tensor
    on_fused: Tensor
    score: Tensor
    predict: Tensor
    trains: bool
    packed: Packed | None = None


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


def plan_step(
    batch: Batch,
    config: ConnectionConfig,
    *,
    training: bool,
    row_share: Tensor | float | None,
) -> Step:
    """Lay out a forward with labels.

    Args:
        batch: rows with labels.
        config: the connection's options.
        training: False: every row runs the student pass, and paired rows the fused one too, to be reported.
        row_share: each row's share of the alignment objective, 1 / (rows of the whole step); None: no objective.
    """
    assert batch.labels is not None
    predict = predicting(batch.labels)
    if config.connection == "align":
        return _aligned_step(batch, config, predict, row_share, training)
    answered, paired = predict.any(dim=1), batch.paired
    every = torch.arange(batch.input_ids.shape[0], device=batch.input_ids.device)
    no_row = torch.zeros_like(paired)
    source, on_fused = every, no_row
    if config.connection != "none" and (config.paths == "both" or not training):
        twice = every[paired & (answered | (config.distill_weight > 0))]
        source = torch.cat([twice, every])
        on_fused = torch.cat([torch.ones_like(twice, dtype=torch.bool), no_row])
    elif config.paths == "fused":
        on_fused = paired & answered
    elif config.paths == "sampled" and batch.fused is not None:
        on_fused = batch.fused & paired & answered
    copies = torch.bincount(source, minlength=every.shape[0])[source]
    score = predict
    if config.distill_weight > 0:  # an answer-free row teaches through the next-token distribution at its prompt's end
        score = predict | (scope_mask("prompt_end", batch.attention_mask, predict) & ~answered[:, None])
    plan = _plan(batch, config, predict, source, on_fused)
    if row_share is not None and config.weight > 0 and config.connection == "gated":
        plan.row_weight = torch.as_tensor(row_share, device=copies.device).float() / copies
        plan.identity_weight = config.identity_weight
    mask = batch.attention_mask[source]
    return Step(batch.input_ids[source], mask, plan, source, on_fused, score[source], predict[source], training)


def _aligned_step(
    batch: Batch, config: ConnectionConfig, predict: Tensor, row_share: Tensor | float | None, training: bool
) -> Step:
    """Every row once; those with a reference weigh `row_share` in the alignment."""
    rows, positions = batch.input_ids.shape
    plan = Plan("align", rows, positions)
    if training and row_share is not None and config.weight > 0 and bool(batch.paired.any()):
        plan.row_weight = batch.paired.float() * torch.as_tensor(row_share, device=predict.device)
        plan.spans = batch.spans(config.align_pool)
    every = torch.arange(rows, device=predict.device)
    fused = torch.zeros(rows, dtype=torch.bool, device=predict.device)
    return Step(batch.input_ids, batch.attention_mask, plan, every, fused, predict, predict, training)


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

    def __init__(self, config: ConnectionConfig, attention_mask: Tensor, batch: Batch | None, memory: Plan | None):
        self.config, self.mask, self.batch, self.memory = config, attention_mask, batch, memory
        self.prefilled = False

    def __call__(self, rows: int, positions: int) -> Plan:
        """The plan of the next forward, over `rows` x `positions` new tokens."""
        if self.prefilled and self.config.scope == "prompt_end":  # it is behind us: decode as the base model does
            return Plan("rest", rows, positions)
        repeat = rows // self.mask.shape[0]
        if not self.prefilled:
            self._check_whole(positions)
            self.prefilled = True
            prompt = self.mask.repeat_interleave(repeat, dim=0)
        else:
            prompt = self.mask.new_zeros(rows, 0)
        transform, connect = (
            self._from_prompt(scope, prompt, positions) for scope in (self.config.scope, self.config.where_fused)
        )
        plan = Plan("connect", rows, positions)
        if self.config.scope != "all":
            plan.transform_index = flat_index(transform)[0]
        if self.batch is not None and self.memory is not None:
            which = self.batch.reference_index.repeat_interleave(repeat)
            plan.connect_index, plan.connect_row = flat_index(connect & (which >= 0)[:, None])
            plan.connect_reference = which[plan.connect_row]
            plan.fused, plan.reference, plan.memory = which >= 0, self.memory.reference, self.memory.results.memory
        return plan

    @staticmethod
    def _from_prompt(scope: str, prompt: Tensor, positions: int) -> Tensor:
        """(B, positions) bool: those of `scope`, over the mask of a `prompt` (B, T; T may be 0) and answer tokens."""
        answer = prompt.new_full((prompt.shape[0], positions - prompt.shape[1]), scope != "prompt_end")
        if not prompt.shape[1]:
            return answer.bool()
        return torch.cat([scope_mask(scope, prompt, None), answer.bool()], dim=1)

    def _check_whole(self, positions: int) -> None:
        if positions < self.mask.shape[1] and (self.config.scope != "all" or self.memory is not None):
            raise UserError(
                "generate: the prompt is not run at once (prefill_chunk_size, or a cache of its beginning), and the "
                "connection cannot tell its end; leave those options out."
            )
