"""How a forward of the model is run: where the LM head looks, without gradient, in one process or several."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.errors import UserError


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
