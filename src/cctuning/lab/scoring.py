"""Scoring held-out questions: greedy exact match per item, and what may be said about it with so few items.

Every figure is a mean over some two hundred yes/no items, so each is given with a 95 % interval: Wilson's for a share,
and for a difference of two models the paired bootstrap of `cctuning.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cctuning.lab.worlds import Item

Generate = Callable[..., Any]


@dataclass(frozen=True)
class Share:
    """A share of `items` right, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 256, max_new_tokens: int = 2
) -> list[str]:
    """Greedy completions up to the end-of-text token, stripped.

    Args:
        model: anything with `generate(input_ids=, attention_mask=, ...)` as `transformers` has it.
        tokenizer: with a pad and an end-of-text token; its padding side is left as it was.
        max_new_tokens: 2 is a name and the end of text: a model that goes on after the name has not answered.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # like lengths together: less padding
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[index] for index in chosen],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(device)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, completion in zip(chosen, completions, strict=True):
            answers[index] = completion.strip()
    return answers


def score(model: Any, tokenizer: Any, items: Sequence[Item], batch_size: int = 256) -> list[bool]:
    """Per item, whether the model's greedy answer is exactly the right one."""
    was_training = model.training
    model.eval()
    answers = answer(model, tokenizer, [item.prompt for item in items], batch_size)
    model.train(was_training)
    return [given == item.answer for given, item in zip(answers, items, strict=True)]


def wilson(flags: Sequence[bool]) -> Share:
    """Share of true flags with Wilson's 95 % interval, which stays inside [0, 1] and is honest at 0 and 1."""
    n = len(flags)
    if not n:
        return Share(math.nan, math.nan, math.nan, 0)
    z, p = 1.959964, sum(flags) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), n)
