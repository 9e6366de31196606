"""Decay towards the base: what keeps English (and all else that no row rehearses) while other languages move.

Aligning a language to English moves weights that English needs too, and the rows rehearse only a little of what the
base knows. Weight decay towards zero does not help; decay towards where the weights started does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from cctuning.errors import UserError
from cctuning.model.starting_weights import StartingWeights


class BaseDecay(TrainerCallback):
    """w <- w - lr * decay * (w - w_0), after each optimiser step, for every tuned weight w that started at w_0.

    Decoupled, as AdamW's decay is (Loshchilov and Hutter 2019), and towards the starting point rather than zero
    (L2-SP: Li, Grandvalet and Davoine 2018, arXiv 1802.01483). `lr` is the step's own, so that the pull fades with the
    schedule; under Adam no weight strays much further than 1 / decay. With LoRA, w are its two factors: B is drawn
    back to 0. The connection's parts are left alone.
    """

    def __init__(self, start: StartingWeights, decay: float) -> None:
        """
        Args:
            start: w_0 of every weight that is drawn back. decay: of the equation.
        """
        self.start, self.decay = start, decay

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Copy the weights, where they had to be sharded first."""
        self.start.take()

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pull every tuned weight back a little."""
        share = min(1.0, kwargs["optimizer"].param_groups[0]["lr"] * self.decay)
        for name, parameter in kwargs["model"].named_parameters():
            start = self.start.of(name.removeprefix("module."), parameter)
            if start is not None:
                parameter.lerp_(start, share)


def check_start(decay: float, reference_weights: str | None, deepspeed: bool) -> None:
    """Raise `UserError` for a decay that is negative, or for what a run of DeepSpeed's cannot keep."""
    if decay < 0:
        raise UserError(f"base_decay: expected 0 (off) or more, got {decay}.")
    wanted = {"base_decay": ("0", decay > 0), "reference_weights": ("current", reference_weights == "start")}
    for option, (instead, used) in wanted.items():
        if used and deepspeed:
            raise UserError(
                f"{option}: the weights of this run are in DeepSpeed's hands, and their start is not kept; set it to "
                f"{instead}, or launch with --accelerate_config fsdp2 or ddp."
            )
