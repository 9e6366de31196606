"""A Transform Matrix of your own: one scale a dimension, h W = h (1 + s).

    python examples/own_transform.py MODEL    # trains it on four rows; then saves, loads and merges it

MODEL is a directory or a name on the hub. The commands know the class too, once they import this module:

    CC_TUNING_PLUGINS=own_transform PYTHONPATH=examples cctuning train --transform scale ...

A Decision Maker derives from `Decision` and is registered with `@register_decision`, a choice of what the reference
offers from `Alignment` with `@register_alignment`; all are in `cctuning.connection`.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from cctuning import CCConfig, CCTrainer, ConnectedModel, ConnectionConfig
from cctuning.connection import Transform, register_transform


@register_transform("scale")
class Scale(Transform):
    """`h W = h (1 + s)`: linear, so it can be merged; of full rank, so there is no LoRA of it."""

    linear = True

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.scale = nn.Parameter(torch.zeros(size))  # zero: the untrained model is the base model

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale.to(hidden.dtype)

    def matrix(self) -> Tensor:
        return self.scale.detach().float().diag()


ROWS = [
    {"prompt": "Mji mkuu wa Kenya ni upi?", "reference": "What is the capital of Kenya?", "response": "Nairobi"},
    {"prompt": "Mji mkuu wa Misri ni upi?", "reference": "What is the capital of Egypt?", "response": "Cairo"},
    {"prompt": "Mji mkuu wa Peru ni upi?", "reference": "What is the capital of Peru?", "response": "Lima"},
    {"prompt": "What is the capital of Cuba?", "reference": None, "response": "Havana"},
]


def main(model: str) -> float:
    """Train, save, load and merge; returns the largest difference of a logit between the two models."""
    with tempfile.TemporaryDirectory() as directory:
        args = CCConfig(directory, max_steps=4, learning_rate=1e-3, save_strategy="no", report_to="none")
        config = ConnectionConfig(connection="gated", transform="scale")
        trainer = CCTrainer(model, args, config, train_dataset=Dataset.from_list(ROWS))
        trainer.train()
        trainer.save_model()
        base = AutoModelForCausalLM.from_pretrained(directory)
        loaded = ConnectedModel.from_pretrained(base, directory).eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        before = loaded(ids).logits
        merged = loaded.merge_and_unload()
        return float((merged(ids).logits - before).abs().max())


if __name__ == "__main__":
    print(f"merged: logits differ by at most {main(sys.argv[1]):.1e}")
