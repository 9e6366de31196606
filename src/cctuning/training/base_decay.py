"""Decay towards the base: keeps English, and whatever else the rows do not rehearse, while other languages move."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from cctuning.errors import UserError
from cctuning.model.starting_weights import StartingWeights


class BaseDecay(TrainerCallback):
    """w <- w - lr * decay * (w - w_0), after each optimizer step, for every trained weight w of the base.

    Decoupled, as in AdamW (Loshchilov and Hutter 2019), and towards the initial weights w_0, not zero (L2-SP: Li,
    Grandvalet and Davoine 2018, arXiv 1802.01483). `lr` is the step's learning rate, so the decay fades with the
    schedule; under Adam no weight moves much further than 1 / decay. With LoRA, w are its two factors, and B decays to
    0. The connection's weights do not decay.
    """

    def __init__(self, start: StartingWeights, decay: float) -> None:
        self.start, self.decay = start, decay

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Copy the weights, if they had to be sharded first."""
        self.start.take()

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the decay."""
        share = min(1.0, kwargs["optimizer"].param_groups[0]["lr"] * self.decay)
        for name, parameter in kwargs["model"].named_parameters():
            start = self.start.of(name.removeprefix("module."), parameter)
            if start is not None:
                parameter.lerp_(start, share)


def check_start(decay: float, reference_weights: str | None, deepspeed: bool) -> None:
    """Raise `UserError` for a negative decay, or if DeepSpeed manages weights whose start is needed."""
    if decay < 0:
        raise UserError(f"base_decay: expected 0 (off) or more, got {decay}.")
    wanted = {"base_decay": ("0", decay > 0), "reference_weights": ("current", reference_weights == "start")}
    for option, (instead, used) in wanted.items():
        if used and deepspeed:
            raise UserError(
                f"{option}: not supported under DeepSpeed, which manages the weights; set it to {instead}, or launch "
                "with --accelerate_config fsdp2 or ddp."
            )
