"""The tuned weights as they were when training began: what `reference_weights: start` and `base_decay` go back to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StartingWeights:
    """A copy of every weight that trains, in its dtype and on its device; frozen weights need none.

    Of a LoRA that is its two factors alone, of full fine-tuning the whole model once more.
    """

    def __init__(self, model: nn.Module, skip: str) -> None:
        """
        Args:
            model: before its first step, and before a checkpoint is loaded into it.
            skip: parameters with this in their name are left out.
        """
        self._model = model
        self.by_name: dict[str, Tensor] = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and skip not in name
        }

    def of(self, name: str, parameter: Tensor) -> Tensor | None:
        """Where `parameter` started, on the device it is on now; None if it is not among the copied."""
        start = self.by_name.get(name)
        if start is not None and start.device != parameter.device:
            start = self.by_name[name] = start.to(parameter.device)
        return start

    def __call__(self, **inputs: Any) -> Any:
        """One forward of the model as it was; its own weights stay where they are."""
        for name, parameter in self._model.named_parameters():
            self.of(name, parameter)
        return torch.func.functional_call(self._model, self.by_name, (), inputs)
