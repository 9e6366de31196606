"""Run forwards of a model under a plan, with logits at chosen positions only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection.plan import Plan, Wire
from cctuning.errors import UserError
from cctuning.model.sites import unwrap

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


def first(output: Any) -> Tensor:
    """The activation in the output of a layer or block."""
    return output[0] if isinstance(output, tuple) else output


PATCHED = ("forward", "_original_forward", "_is_accelerate_prepared")  # set on a model by TRL and accelerate


def instance_state(model: nn.Module) -> dict[str, Any]:
    """What trainers set on a model itself: a forward in place of its class's, and the marks of accelerate."""
    return {name: vars(model)[name] for name in PATCHED if name in vars(model)}


def restore_instance(model: nn.Module, state: dict[str, Any]) -> None:
    """Put back `instance_state`.

    With the forward of an earlier training a deep copy of the model would run the original's weights (TRL's fused head
    calls the forward of the model that it was made for), and a second training would have the precision of the first.
    """
    for name in PATCHED:
        vars(model).pop(name, None)
    vars(model).update(state)


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
