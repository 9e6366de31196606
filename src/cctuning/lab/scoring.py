"""Scoring held-out questions: greedy exact match per item, and what may be said about it with so few items.

Every figure is a mean over some two hundred yes/no items, so each is given with a 95 % interval (Wilson's for a share;
a paired bootstrap over items for a difference, because two models answer the same questions), and beside the *majority
floor*: what a model gets that gives each kind of question its most frequent answer and knows nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cctuning.lab.cldr import RELATIONS, Item, World

Generate = Callable[..., Any]


@dataclass(frozen=True)
class Share:
    """A share of `items` right, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Difference:
    """Second minus first, in [-1, 1], with its 95 % interval over items."""

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


def score_languages(model: Any, tokenizer: Any, world: World, split: str = "test") -> dict[str, list[bool]]:
    """`score` of every language of the world, in the world's order."""
    return {lang: score(model, tokenizer, world.test_items(lang, split)) for lang in world.languages}


def majority(world: World, split: str = "test") -> list[bool]:
    """Per item, whether the constant answer of its relation (the SFT split's most frequent) is right.

    The facts are the same in every language, so one floor holds for all.
    """
    return [fact.answer == world.constant_answers[fact.relation] for fact in world.splits[split]]


def majority_by_relation(world: World, split: str = "test") -> dict[str, Share]:
    """The floor of each relation: where it is high, a model's share says little."""
    flags = majority(world, split)
    by_relation: dict[str, list[bool]] = {relation: [] for relation in RELATIONS}
    for fact, flag in zip(world.splits[split], flags, strict=True):
        by_relation[fact.relation].append(flag)
    return {relation: wilson(flags) for relation, flags in by_relation.items()}


def wilson(flags: Sequence[bool]) -> Share:
    """Share of true flags with Wilson's 95 % interval, which stays inside [0, 1] and is honest at 0 and 1."""
    n = len(flags)
    if not n:
        return Share(math.nan, math.nan, math.nan, 0)
    z, p = 1.959964, sum(flags) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_bootstrap(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], draws: int = 2000, seed: int = 0
) -> Difference:
    """Difference of two models' shares over the same items, with a 95 % percentile interval.

    Args:
        first, second: one list of flags a language, the same items in the same order. The lists of several languages
            ask about the same facts, so a fact is drawn with all its languages: they are not independent.
    """
    if len(first) != len(second) or any(len(a) != len(b) for a, b in zip(first, second, strict=True)):
        raise ValueError(
            "first, second: expected the same items in both; score both models on the same world and split"
        )
    if len({len(flags) for flags in first}) != 1:
        raise ValueError("first: every language needs the same facts to draw them together; compare languages apart")
    gains = [sum(b[i] - a[i] for a, b in zip(first, second, strict=True)) / len(first) for i in range(len(first[0]))]
    n = len(gains)
    if not n:
        return Difference(math.nan, math.nan, math.nan, 0)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(gains, k=n)) / n for _ in range(draws))
    return Difference(sum(gains) / n, means[int(0.025 * draws)], means[int(0.975 * draws) - 1], n)
