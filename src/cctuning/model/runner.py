"""Run forwards of a model under a plan: logits at chosen positions only, and layers only as far as they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import LayerAlignment, StopForward, offered
from cctuning.connection.plan import Plan, Wire
from cctuning.errors import UserError
from cctuning.model.sites import Site, unwrap

if TYPE_CHECKING:
    from cctuning.model.passes import Batch, Step
    from cctuning.model.recorded import RecordedReferences

NO_LOGITS = torch.empty(0, dtype=torch.long)  # as `index`: no logits at all


class Runner:
    """Forwards of a model, each under a plan that the hooks of the layers read from the wire.

    A pre-hook on the output embedding selects the positions whose logits are needed. This works for every family (the
    model's own scaling and soft-capping of logits still apply), skips the head in a reference pass, and costs no
    memory for positions without loss.
    """

    def __init__(self, model: nn.Module, wire: Wire) -> None:
        base = unwrap(model)
        head = base.get_output_embeddings()
        if head is None:
            raise UserError(f"{base.config.model_type}: no output embedding; expected a causal LM.")
        self.model, self.wire = model, wire
        self._planner: Callable[[int, int], Plan] | None = None
        self._inside = False
        self._index: Tensor | None = None
        self.handles = [
            base.get_decoder().register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            head.register_forward_pre_hook(self._before_head),
        ]

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward of the decoder (never in a recomputation): put the right plan on the wire."""
        if self._planner is not None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            self.wire.plan = self._planner(tokens.shape[0], tokens.shape[1])
        elif not self._inside:
            self.wire.plan = None  # a direct call of the model inside; a plan may be left from the last backward

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._index is None:
            return None
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._index].unsqueeze(0), *args[1:])

    def __call__(
        self,
        plan: Plan | None,
        index: Tensor | None = None,
        through: Callable[..., Any] | None = None,
        /,
        **inputs: Any,
    ) -> Any:
        """One forward under `plan`; logits are (1, N, V) at the flat positions `index` (N,), or all where it is None.

        Args:
            through: module to call in place of the model (its wrapper).
        """
        self._inside, self._index, self.wire.plan = True, index, plan
        try:
            return (self.model if through is None else through)(**inputs)  # a compiled module has no truth value
        finally:
            self._inside, self._index, self.wire.plan = False, None, None

    @contextmanager
    def planned(self, planner: Callable[[int, int], Plan]) -> Iterator[None]:
        """Context manager: each forward of the decoder, over rows x positions, runs under the plan of `planner`."""
        self._planner = planner
        try:
            yield
        finally:
            self._planner, self.wire.plan = None, None


def with_cache(options: dict[str, Any]) -> None:
    """Turn on the cache of `generate`, without which each step runs the prompt again and its end is not known."""
    if options.setdefault("use_cache", True) is False:
        raise UserError("generate: use_cache=False hides the prompt's end from the connection; leave the cache on.")


def copy_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.clone()


def several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def no_gradient() -> Iterator[None]:
    """`torch.no_grad`, without the warning that reentrant checkpointing issues about it."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: every module of `model` is in evaluation mode, and in its former mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
    known = config._attn_implementation in ("eager", "sdpa") or is_flash_attention_requested(config)
    return rotary and not experts and known
