"""Run references through the model: at inference, and in training where they are not recorded.

Training needs this with `reference_weights: current`, `alignment: attention`, `reference_gradient` and
`record_references: false`. Recorded references (recorded.py) offer the layers the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cctuning.connection import ConnectionConfig, Enough, Plan, Reference
from cctuning.model.aligner import Aligner
from cctuning.model.passes import Batch, Step, flat_index
from cctuning.model.runner import Runner, no_gradient


class LiveReferences:
    """Reference passes of one model."""

    def __init__(self, config: ConnectionConfig, run: Runner, aligner: Aligner | None) -> None:
        self.config, self._run, self.aligner = config, run, aligner

    def remember(self, batch: Batch, through: Callable[..., Any] | None = None) -> Plan:
        """Run the references once, without gradient, LM head or cache; the plan's results hold what layers kept.

        Never through a DDP wrapper: a rank may have no reference in its batch, and DDP's forward is collective.

        Args:
            through: what to call in place of the model: the model with its starting weights.
        """
        assert batch.reference_ids is not None and batch.reference_mask is not None
        rows, positions = batch.reference_ids.shape
        plan = Plan("record", rows, positions, reference=Reference.from_mask(batch.reference_mask))
        if self.aligner is not None:
            plan.spans = batch.reference_spans(self.config.align_pool)
            plan.stop = self.aligner.may_end(through is None)
        nothing = batch.reference_ids.new_empty(0)
        inputs = {"input_ids": batch.reference_ids, "attention_mask": batch.reference_mask, "use_cache": False}
        with no_gradient(), suppress(Enough):
            self._run(through, plan, nothing, **inputs)
        return plan

    def offer(self, batch: Batch, plan: Plan, through: Callable[..., Any] | None = None) -> None:
        """Run the references, and put what the layers kept into the `plan` of the rows' own pass."""
        recorded = self.remember(batch, through)
        plan.reference, plan.memory = recorded.reference, recorded.results.memory

    def join(self, batch: Batch, through: Callable[..., Any] | None = None) -> None:
        """Take part in the reference pass of other processes without a reference of one's own: where weights are
        sharded each forward is collective, so one token runs along."""
        token = batch.input_ids[:1, :1]
        one = replace(batch, reference_ids=token, reference_mask=torch.ones_like(token), reference_text=None)
        self.remember(one, through)


def append_references(step: Step, batch: Batch) -> None:
    """Put the references into the step's own batch, right-padded to a common length: (A + R, T').

    For `reference_gradient`: inside one forward the reference's activations reach the connection as ordinary values
    of the layer, so their gradient is exact under either kind of checkpointing. The step's plan is re-indexed.
    """
    assert batch.reference_ids is not None and batch.reference_mask is not None
    plan, old = step.plan, step.plan.positions
    width, references = max(old, batch.reference_ids.shape[1]), len(batch.reference_ids)
    filler = int(batch.input_ids[0, 0])

    def widen(tensor: Tensor, fill: int = 0) -> Tensor:
        return pad(tensor, (0, width - tensor.shape[1]), value=fill)

    def moved(index: Tensor) -> Tensor:
        return torch.div(index, old, rounding_mode="floor") * width + index % old

    if plan.transform_index is None:  # the references run bare, so "everywhere" becomes "every row before them"
        plan.transform_index = flat_index(widen(step.attention_mask.bool()))[0]
    else:
        plan.transform_index = moved(plan.transform_index)
    if plan.connect_index is not None:
        plan.connect_index = moved(plan.connect_index)
    if plan.identity_index is not None:
        plan.identity_index = moved(plan.identity_index)
    plan.reference_rows, plan.rows, plan.positions = plan.rows, plan.rows + references, width
    if plan.fused is not None:
        plan.fused = pad(plan.fused, (0, references))
    if plan.row_weight is not None:
        plan.row_weight = pad(plan.row_weight, (0, references))
    plan.reference = Reference.from_mask(widen(batch.reference_mask))
    step.input_ids = torch.cat([widen(step.input_ids, filler), widen(batch.reference_ids, filler)])
    step.attention_mask = torch.cat([widen(step.attention_mask), widen(batch.reference_mask)])
    step.score, step.predict = (pad(part, (0, width - old, 0, references)) for part in (step.score, step.predict))
