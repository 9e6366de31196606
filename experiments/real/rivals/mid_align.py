"""Middle-layer alignment (Liu and Niehues 2025, arXiv 2502.14830), in its alternating form.

Every other step trains the task on a batch of answered rows; the steps between pull the two sides of parallel
sentences together in one middle layer, by a contrastive loss among the batch:

    L = -1/B sum_i log( exp(cos(x_i, y_i) / t) / sum_j exp(cos(x_i, y_j) / t) ),   t = 0.1, and the same from y to x

x and y are means over the tokens of the layer's output, and both sides get gradient: English may move. Against the
paper: all weights but the embeddings are tuned, as in every recipe here, where theirs are a LoRA; and a sentence's
first token is left out of its mean, since in these bases it is a sink of huge norm that would drown the rest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning import CCTrainer
from experiments.real.recipes import Job, padded, tune

TEMPERATURE = 0.1


class MidAlignTrainer(CCTrainer):
    """Plain SFT on even steps, the contrastive loss on odd ones.

    Args:
        layer: whose output is aligned. sides: (text's ids, reference's ids) of each pair. number: of pairs a step.
    """

    def __init__(
        self, *args: Any, layer: int, sides: Sequence[tuple[list[int], list[int]]], number: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._layer, self._sides, self._number = layer, list(sides), number
        self._draw = random.Random(f"mid-align {self.args.seed}")
        self._queue: list[tuple[list[int], list[int]]] = []

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of this step; on odd steps the batch of answered rows is ignored."""
        if self.state.global_step % 2 == 0:
            return super().compute_loss(model, inputs, *args, **kwargs)
        while len(self._queue) < self._number:
            self._queue += self._draw.sample(self._sides, len(self._sides))
        pairs, self._queue = self._queue[: self._number], self._queue[self._number :]
        means = self._means([text for text, _ in pairs] + [reference for _, reference in pairs])
        return contrastive(means[: len(pairs)], means[len(pairs) :])

    def _means(self, sequences: Sequence[list[int]]) -> Tensor:
        """(N, d) of the layer's output, over each sequence's tokens but its first."""
        inputs = padded(sequences, self.model.device)
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        handle = self.model.model.layers[self._layer].register_forward_hook(keep)
        try:
            self.model.model(**inputs, use_cache=False)
        finally:
            handle.remove()
        counted = inputs["attention_mask"].float()
        counted[:, 0] = 0
        counted = counted / counted.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("ns,nsd->nd", counted, kept[0].float())


def contrastive(one: Tensor, two: Tensor) -> Tensor:
    """The loss above of (B, d) and (B, d), mean of both directions."""
    scores = nn.functional.normalize(one, dim=-1) @ nn.functional.normalize(two, dim=-1).T / TEMPERATURE
    target = torch.arange(len(one), device=one.device)
    return (nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)) / 2


def mid_align(job: Job) -> PreTrainedModel:
    """The whole recipe: twice as many steps as plain SFT, so that the answered rows are read as often."""
    setting = job.setting
    layers = len(job.model.model.layers)
    bos = [] if job.tokenizer.bos_token_id is None else [job.tokenizer.bos_token_id]
    pairs = job.pairs()
    ids = job.tokenizer(
        [side for pair in pairs for side in (pair["text"], pair["reference"])], add_special_tokens=False
    )["input_ids"]
    sides = [(bos + ids[2 * i], bos + ids[2 * i + 1]) for i in range(len(pairs))]
    return tune(
        job,
        job.model,
        "mid-align",
        job.rows(),
        trainer=MidAlignTrainer,
        given={"num_train_epochs": 2 * setting.epochs},
        layer=setting.layers[0] if setting.layers else layers // 2 - 1,
        sides=sides,
        number=setting.batch * setting.share,
    )
