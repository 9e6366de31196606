"""The hooks of `connection: align` in a model, and the forwards that skip the layers above the last aligned one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cctuning.connection import ConnectionConfig, LayerAlignment, StopForward, Wire, offered
from cctuning.errors import UserError
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
            sites: of the layers that are aligned; every: of all layers.
            base_config: configuration of the language model.
        """
        self.config, self.wire = config, wire
        self.layers: dict[int, LayerAlignment] = {}
        self.handles: list[Any] = []
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
        self._last = sites[-1].layer

    def _above(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs before each layer above the last aligned one, also when it is recomputed for a checkpoint."""
        plan = self.wire.plan
        if plan is not None and plan.stop:
            raise StopForward
        if plan is None or plan.above is None:
            return None
        own = {name: value for name, value in plan.above.inputs.items() if name in kwargs}
        return plan.above.of(args), plan.above.of(kwargs) | own

    def may_end(self, whole: bool, training: bool = False) -> bool:
        """Whether a forward may end early: not with several processes or in a wrapped model (not `whole`), and in
        training not under reentrant checkpointing, which keeps no graph of what is collected on the side."""
        checkpoint = getattr(self._last, "_gradient_checkpointing_func", None)
        reentrant = getattr(checkpoint, "keywords", {}).get("use_reentrant", True) if checkpoint else False
        on = getattr(self._last, "gradient_checkpointing", False)
        return whole and not several_processes() and not (training and on and reentrant)

    def keep(self, recorded: RecordedReferences) -> None:
        """Take the statistics of the references."""
        for layer, alignment in self.layers.items():
            alignment.statistics = recorded.statistics[layer]

    def offer(self, batch: Batch, step: Step, others: Tensor | None) -> None:
        """Put what the rows are aligned to into the step's plan, from the vectors in its memory.

        Args:
            others: places of the references to tell them from; None: all.
        """
        if step.plan.row_weight is None:
            return
        which = batch.reference_index[step.source].clamp(min=0)
        for layer, alignment in self.layers.items():
            if alignment.statistics is None and self.config.loss != "relative":
                raise UserError(
                    f"align_loss: {self.config.loss} needs the spread of the references: call "
                    "keep_recorded(cctuning.model.recorded.record(...)) before the first step, as CCTrainer does."
                )
            vectors = step.plan.memory[layer][0]
            step.plan.offered[layer] = offered(self.config.loss, vectors, which, alignment.statistics, others)
        step.plan.memory = {}


def rows_separable(config: Any) -> bool:
    """Whether rows can be selected from the inputs of a decoder layer: not with ALiBi biases (rows times heads), block
    masks of FlexAttention, or an auxiliary loss over the routing of all rows."""
    rotary = getattr(config, "rope_parameters", None) is not None
    experts = getattr(config, "router_aux_loss_coef", None) is not None
    return rotary and not experts and config._attn_implementation in ("eager", "sdpa", "flash_attention_2")
