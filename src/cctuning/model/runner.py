"""How a forward of the model is run: where the LM head looks, without gradient, in one process or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection import Plan, Wire
from cctuning.errors import UserError
from cctuning.model.sites import unwrap


class HeadSelector:
    """Lets the LM head see only the positions whose logits are wanted.

    A pre-hook on the output embedding: works for every family (the model's own scaling and soft-capping of logits
    still apply), skips the head altogether in a reference pass, and costs no memory for positions without loss.
    """

    def __init__(self, head: nn.Module) -> None:
        self.index: Tensor | None = None
        self.handle = head.register_forward_pre_hook(self._select)

    def _select(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.index is None:
            return None
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self.index].unsqueeze(0), *args[1:])

    @contextmanager
    def only(self, index: Tensor | None) -> Any:
        """Within: logits are (1, N, V) at the flat positions `index` (N,); None: everywhere."""
        self.index = index
        try:
            yield
        finally:
            self.index = None


class Runner:
    """Forwards of a model, each under a plan that the layers' hooks find on the wire.

    Raises:
        UserError: the model has no head whose logits could be scored.
    """

    def __init__(self, model: nn.Module, wire: Wire) -> None:
        base = unwrap(model)
        head = base.get_output_embeddings()
        if head is None:
            raise UserError(f"{base.config.model_type}: no output embedding; expected a causal LM.")
        self.model, self.wire = model, wire
        self._head = HeadSelector(head)
        self._planner: Callable[[int, int], Plan] | None = None
        self._inside = False
        before = base.get_decoder().register_forward_pre_hook(self._on_decoder, with_kwargs=True)
        self.handles = [before, self._head.handle]

    def _on_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward of the decoder (never in a recomputation): put the right plan on the wire."""
        if self._planner is not None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            self.wire.plan = self._planner(tokens.shape[0], tokens.shape[1])
        elif not self._inside:
            self.wire.plan = None  # a direct call of the model inside; a plan may be left from the last backward

    def __call__(
        self, through: Callable[..., Any] | None, plan: Plan | None, index: Tensor | None, **inputs: Any
    ) -> Any:
        """One forward under `plan`, with logits only at the flat positions `index` (None: all).

        Args:
            through: the module to call in place of the model (its wrapper).
        """
        self._inside, self.wire.plan = True, plan
        try:
            with self._head.only(index):
                return (self.model if through is None else through)(**inputs)  # a compiled module has no truth
        finally:
            self._inside, self.wire.plan = False, None

    @contextmanager
    def planned(self, planner: Callable[[int, int], Plan]) -> Iterator[None]:
        """Within: each forward of the decoder, over rows x positions, has the plan that `planner` gives for it."""
        self._planner = planner
        try:
            yield
        finally:
            self._planner, self.wire.plan = None, None


def with_cache(options: dict[str, Any]) -> None:
    """Have `generate` keep a cache, whatever the model's own options say: without one each step runs the prompt again,
    and its end cannot be told.

    Raises:
        UserError: the caller turned it off.
    """
    if options.setdefault("use_cache", True) is False:
        raise UserError("generate: use_cache=False hides the prompt's end from the connection; leave the cache on.")


def copy_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.clone()


def several_processes() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


@contextmanager
def no_gradient() -> Iterator[None]:
    """`torch.no_grad`, without the warning of reentrant checkpointing that this is so."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        yield


def trainable_parameters(model: nn.Module, connections: Iterable[nn.Module]) -> str:
    """A line that says how many parameters of `model` train, and how many of them are the connections' (inside it)."""
    ours = sum(p.numel() for c in connections for p in c.parameters() if p.requires_grad)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    return (
        f"trainable params: {trainable:,} (connection: {ours:,}, base: {trainable - ours:,}) || "
        f"all params: {count:,} || trainable%: {100 * trainable / max(count, 1):.4f}"
    )
