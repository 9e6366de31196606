"""The tuned weights as they were when training began: what `reference_weights: start` and `base_decay` go back to."""

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
    """Within: every part of `model` is in evaluation mode; afterwards each is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class StartingWeights:
    """A copy of every weight that trains, in its dtype and on its device; frozen weights need none.

    Of a LoRA that is its two factors alone, of full fine-tuning the whole model once more; of sharded weights (FSDP2)
    each process copies its own shards.
    """

    def __init__(self, model: nn.Module, skip: str, later: bool = False) -> None:
        """
        Args:
            model: before its first step, and before a checkpoint is loaded into it.
            skip: parameters with this in their name are left out.
            later: the weights are yet to be sharded: they are copied by `take`, or when first run through.
        """
        self._model, self._skip = model, skip
        self.by_name: dict[str, Tensor] = {}
        if not later:
            self.take()

    def take(self) -> None:
        """Copy the weights as they are now, unless they have been copied before."""
        if not self.by_name:
            self.by_name = {
                name: parameter.detach().clone()
                for name, parameter in self._model.named_parameters()
                if parameter.requires_grad and self._skip not in name
            }

    def of(self, name: str, parameter: Tensor) -> Tensor | None:
        """Where `parameter` started, on the device it is on now; None if it is not among the copied."""
        start = self.by_name.get(name)
        if start is not None and start.device != parameter.device:
            start = self.by_name[name] = start.to(parameter.device)
        return start

    def __call__(self, **inputs: Any) -> Any:
        """One forward of the model as it was, without gradient or dropout: what is aligned to stands still. Its own
        weights stay where they are."""
        self.take()
        with evaluating(self._model):
            return self._run(inputs)

    def _run(self, inputs: dict[str, Any]) -> Any:
        if any(isinstance(start, DTensor) for start in self.by_name.values()):
            with self._exchanged():
                return self._model(**inputs)
        return torch.func.functional_call(self._model, self._in_place(), (), inputs, tie_weights=False)

    def _in_place(self) -> dict[str, Tensor]:
        """Each slot that holds a copied weight -> its start, every slot once.

        A module that sits in the model under two names (PEFT's trainable tokens of tied embeddings) would be exchanged
        twice by its names, and be left with the start.
        """
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        slots: dict[str, Tensor] = {}
        for prefix, module in self._model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                start = self.of(names[id(parameter)], parameter)
                if start is not None:
                    slots[f"{prefix}.{leaf}" if prefix else leaf] = start
        return slots

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Within: the shards hold the start. FSDP2 gathers a layer from them by itself, so nothing else will do."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays gathered after a forward, and would be run as it was gathered
        for name, parameter in self._model.named_parameters():
            start = self.of(name, parameter)
            if start is not None:
                now = parameter.detach().clone()
                parameter.copy_(start)
                start.copy_(now)
