"""Keep the trainable weights as they were before training, for `reference_weights: start` and `base_decay`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


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


class StartingWeights:
    """A copy of every weight that trains, in its dtype and on its device.

    Of a LoRA this is its two factors, of full fine-tuning the whole model; of sharded weights (FSDP2) each process
    copies its own shards.
    """

    def __init__(self, model: nn.Module, skip: str, later: bool = False) -> None:
        """
        Args:
            model: before its first step, and before a checkpoint is loaded into it.
            skip: parameters with this in their name are left out.
            later: copy the weights in `take` or at the first forward, for they are not sharded yet.
        """
        self._model, self._skip = model, skip
        self.by_name: dict[str, Tensor] = {}
        if not later:
            self.take()

    def take(self) -> None:
        """Copy the weights as they are now, unless that has been done."""
        if not self.by_name:
            self._reshard()
            self.by_name = {
                name: parameter.detach().clone()
                for name, parameter in self._model.named_parameters()
                if parameter.requires_grad and self._skip not in name
            }

    def of(self, name: str, parameter: Tensor) -> Tensor | None:
        """Starting value of `parameter`, on its current device; None if it was not copied."""
        start = self.by_name.get(name)
        if start is not None and start.device != parameter.device:
            start = self.by_name[name] = start.to(parameter.device)
        return start

    def __call__(self, **inputs: Any) -> Any:
        """One forward with the starting weights, without dropout. The model's own weights are unchanged afterwards."""
        self.take()
        with evaluating(self._model):
            self._exchange()
            try:
                return self._model(**inputs)
            finally:
                self._exchange()

    def _reshard(self) -> None:
        """Free the weights that FSDP2 keeps gathered after a forward, those of the root: they are no shards."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def _exchange(self) -> None:
        self._reshard()
        for name, parameter in self._model.named_parameters():
            start = self.of(name, parameter)
            if isinstance(start, DTensor):  # FSDP2 gathers a layer from the memory of its shards
                now = parameter.detach().clone()
                parameter.copy_(start)
                start.copy_(now)
            elif start is not None:
                self.by_name[name], parameter.data = parameter.data, start
