"""`connection: align` inside a model: hooks on its layers, what they are aligned to, and forwards that end early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection import ConnectionConfig, Enough, LayerAlignment, Plan, Wire, offered
from cctuning.errors import UserError
from cctuning.model.objective import ConnectedOutput, aligned_alone
from cctuning.model.passes import Batch, Step
from cctuning.model.recorded import RecordedReferences
from cctuning.model.runner import copy_output, several_processes
from cctuning.model.sites import Site


class Aligner:
    """The hooks of one model. They have no weights.

    Attributes:
        layers: layer number -> its alignment. handles: remove the hooks.
        may_leave: rows without an answer skip the layers above the last aligned one.
    """

    def __init__(
        self, config: ConnectionConfig, sites: Sequence[Site], every: Sequence[Site], wire: Wire, base_config: Any
    ) -> None:
        """
        Args:
            sites: of the layers that are aligned; every: of all layers. wire: of the model.
            base_config: configuration of the language model.
        """
        self.config, self.wire = config, wire
        self.layers: dict[int, LayerAlignment] = {}
        self.handles: list[Any] = []
        self._may_end = True
        above = [site for site in every if site.index > sites[-1].index]
        for site in above:
            self.handles.append(site.layer.register_forward_pre_hook(self._above, with_kwargs=True))
        self.may_leave = bool(above) and rows_separable(base_config)
        for site in sites:
            alignment = LayerAlignment(config, site.index, len(sites), wire)
            at = site.layer if config.align_at == "residual" else site.block
            self.handles.append(at.register_forward_hook(alignment.hook, with_kwargs=True))
            if site.in_place and at is site.block:
                self.handles.append(at.register_forward_hook(copy_output))
            self.layers[site.index] = alignment

    def _above(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs before each layer above the last aligned one, also when it is recomputed for a checkpoint."""
        plan = self.wire.plan
        if plan is None:
            return None
        if plan.stop:
            raise Enough
        if plan.leading is not None:
            shorter = {name: value for name, value in plan.leading_inputs.items() if name in kwargs}
            return first_positions(args, plan), first_positions(kwargs, plan) | shorter
        if plan.kept is None:
            return None
        return select_rows(args, plan.kept, plan.sequences), select_rows(kwargs, plan.kept, plan.sequences)

    def shorten(self, step: Step, whole: bool, loss_only: bool) -> None:
        """Let rows without an answer skip the layers above the last aligned one.

        Args:
            whole: the model is not wrapped. loss_only: no logits are returned.
        """
        if step.plan.row_weight is None:
            return
        answered = step.score.any(dim=1)
        if not bool(answered.any()):
            step.plan.stop = self.may_end(whole)
        elif self.may_leave and loss_only and not bool(answered.all()):
            step.plan.kept, step.plan.sequences = answered.nonzero().squeeze(1), step.plan.rows

    def may_end(self, whole: bool) -> bool:
        """Whether a forward may end early: not with several processes. `whole`: the model is not wrapped."""
        return whole and self._may_end and not several_processes()

    def keep(self, recorded: RecordedReferences) -> None:
        """Take the statistics of the references."""
        for layer, alignment in self.layers.items():
            alignment.statistics = recorded.statistics[layer]

    def offer(self, batch: Batch, step: Step, others: Tensor | None) -> None:
        """Put what the rows are aligned to into the step's plan, from the vectors in its memory.

        Raises:
            UserError: the error is in units of the references' spread, which has not been measured.
        """
        if step.plan.row_weight is None:
            return
        which = batch.reference_index.clamp(min=0)
        for layer, alignment in self.layers.items():
            if alignment.statistics is None and self.config.loss != "relative":
                raise UserError(
                    f"align_loss: {self.config.loss} needs the spread of the references: call "
                    "keep_recorded(cctuning.model.recorded.record(...)) before the first step, as CCTrainer does."
                )
            vectors = step.plan.memory[layer][0]
            step.plan.offered[layer] = offered(self.config.loss, vectors, which, alignment.statistics, others)
        step.plan.memory = {}

    def alone(self, batch: Batch, step: Step) -> ConnectedOutput | None:
        """The output of a forward that ended early; None where it must be run to its end after all.

        Reentrant checkpointing keeps no graph of what is collected on the side: there the gradient is added to the
        layers' outputs.
        """
        result = aligned_alone(batch, step)
        assert result.loss is not None
        if result.loss.requires_grad or not torch.is_grad_enabled():
            return result
        self._may_end = step.plan.stop = False
        return None


def rows_separable(config: Any) -> bool:
    """Whether rows can be selected from the inputs of a decoder layer: not with ALiBi biases (rows times heads), block
    masks of FlexAttention, or an auxiliary loss over the routing of all rows."""
    rotary = getattr(config, "rope_parameters", None) is not None
    experts = getattr(config, "router_aux_loss_coef", None) is not None
    return rotary and not experts and config._attn_implementation in ("eager", "sdpa", "flash_attention_2")


def first_positions(given: Any, plan: Plan) -> Any:
    """`given` with only the first `plan.leading` positions of each tensor that has all of the one sequence."""
    if isinstance(given, Tensor):
        assert plan.row_of is not None
        whole = given.ndim > 1 and given.shape[:2] == (1, len(plan.row_of))
        return given[:, : plan.leading] if whole else given
    if isinstance(given, tuple):
        return tuple(first_positions(value, plan) for value in given)
    if isinstance(given, dict):
        return {name: first_positions(value, plan) for name, value in given.items()}
    return given


def select_rows(given: Any, kept: Tensor, rows: int) -> Any:
    """`given` with only the rows `kept` (K,) of each tensor that has one entry for each of `rows`.

    Args:
        given: arguments of a decoder layer: hidden states (rows, T, d), or (K, T, d) of the layer below, masks,
            positions.
    """
    if isinstance(given, Tensor):
        return given[kept] if given.ndim > 1 and given.shape[0] == rows else given
    if isinstance(given, tuple):
        return tuple(select_rows(value, kept, rows) for value in given)
    if isinstance(given, dict):
        return {name: select_rows(value, kept, rows) for name, value in given.items()}
    return given
