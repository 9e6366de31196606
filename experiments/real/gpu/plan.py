"""The plan of one GPU session on `sib200`, most valuable first: `python -m experiments.real.gpu.plan > plan.jsonl`.

Searches run with seed 0 and are decided on `dev`; seeds 1 and 2 of what was chosen follow. Every recipe's own rate is
searched, and its weight or its amount of passes where it has one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.real.registry import NEVER, SIB

BASE, WORLD = "gemma-3-270m", "sib200"
ENGLISH = {"without": list(NEVER)}  # labels in English alone, parallel text in 22 languages
EVERY = {"answered": list(SIB), "without": list(NEVER)}
COMMON = {"epochs": 4}
WITH_TEXT = ("ar", "de", "el", "es", "fr", "hi", "ja", "ru", "sw", "ta", "zh")  # eleven, for the curve of languages


def line(group: str, recipe: str, text: dict[str, Any], seed: int = 0, **setting: Any) -> dict[str, Any]:
    """A line of the plan."""
    cell = {"base": BASE, "world": WORLD, "recipe": recipe, "seed": seed}
    return {"group": group, "cell": {**cell, "setting": {**COMMON, **setting, "text": text}}}


def then(one: dict[str, Any], after: str, take: Sequence[str]) -> dict[str, Any]:
    """The line with the options `take` of the best of a group."""
    return {**one, "after": after, "take": list(take)}


PACK = ("rate", "pack_rate", "pack_passes", "weight", "layers", "pool", "loss", "at")
JOINT = ("rate", "weight", "layers", "pool", "loss", "at")


def searches() -> Iterator[dict[str, Any]]:
    """Rates first: nothing below means much without them."""
    yield line("base", "base", ENGLISH)
    for rate in (5e-5, 1e-4, 3e-5):
        yield line("plain", "plain", ENGLISH, rate=rate)
    for pack_rate, passes in ((1e-4, 2), (5e-5, 2), (2e-4, 2), (1e-4, 1), (1e-4, 4)):
        yield line("pack", "pack", ENGLISH, rate=5e-5, pack_rate=pack_rate, pack_passes=passes)
    for rate, weight in ((5e-5, 0.3), (1e-4, 0.3), (5e-5, 1.0), (1e-4, 1.0)):
        yield line("align", "align", ENGLISH, rate=rate, weight=weight)
    yield line("pack", "pack", ENGLISH, rate=1e-4, pack_rate=1e-4)
    yield line("pack", "pack", ENGLISH, rate=3e-5, pack_rate=1e-4)
    for rate, epochs in ((5e-5, 1), (1e-4, 1), (5e-5, 2)):
        yield line("plain-all", "plain", EVERY, rate=rate, batch=64, epochs=epochs)


def seeds() -> Iterator[dict[str, Any]]:
    """The main comparison, with the options that the searches chose."""
    for seed in (1, 2):
        yield then(line("plain-seeds", "plain", ENGLISH, seed), "plain", ["rate"])
        yield then(line("pack-seeds", "pack", ENGLISH, seed), "pack", PACK)
        yield then(line("align-seeds", "align", ENGLISH, seed), "align", JOINT)
        yield then(line("plain-all-seeds", "plain", EVERY, seed, batch=64), "plain-all", ["rate", "epochs"])


def rivals() -> Iterator[dict[str, Any]]:
    """The same text in other ways."""
    for rate, weight in ((5e-5, 1.0), (1e-4, 1.0), (5e-5, 5.0)):
        yield line("cc", "cc", ENGLISH, rate=rate, weight=weight, loss="standardized")
    for rate in (5e-5, 1e-4):
        yield line("mid-align", "mid-align", ENGLISH, rate=rate)
        yield line("translation-rows", "translation-rows", ENGLISH, rate=rate)
        yield line("text-first", "text-first", ENGLISH, pack_rate=rate)
        yield line("translation-first", "translation-first", ENGLISH, pack_rate=rate)
    yield line("distil", "distil", ENGLISH)
    yield line("pseudo", "pseudo", ENGLISH)
    for seed in (1, 2):
        yield then(line("cc-seeds", "cc", ENGLISH, seed), "cc", JOINT)
        yield then(line("mid-align-seeds", "mid-align", ENGLISH, seed), "mid-align", ["rate"])
        yield then(line("translation-first-seeds", "translation-first", ENGLISH, seed), "translation-first", ["pack_rate"])
        yield then(line("translation-rows-seeds", "translation-rows", ENGLISH, seed), "translation-rows", ["rate"])
        yield then(line("text-first-seeds", "text-first", ENGLISH, seed), "text-first", ["pack_rate"])


def variants() -> Iterator[dict[str, Any]]:
    """Loss, site, pool and layers of the pack, at the searched rates: what settles the defaults."""
    for name, setting in (
        ("standardized", {"loss": "standardized", "weight": 1.0}),
        ("layers 6-12", {"layers": list(range(6, 13))}),
        ("layers 9-15", {"layers": list(range(9, 16))}),
        ("text_last", {"pool": "text_last"}),
        ("ffn", {"at": "ffn"}),
        ("all layers", {"layers": list(range(18))}),
    ):
        yield then(line(f"variant {name}", "pack", ENGLISH, **setting), "pack", ["rate", "pack_rate", "pack_passes"])


def controls() -> Iterator[dict[str, Any]]:
    """What should do worse."""
    yield then(line("control wrong", "pack", ENGLISH, pairs="wrong"), "pack", PACK)
    taken = ["rate", "pack_rate", "pack_passes"]
    yield then(line("control relative", "pack", ENGLISH, loss="relative", weight=5.0), "pack", taken)
    yield then(line("control current", "pack", ENGLISH, reference_weights="current"), "pack", PACK)
    yield then(line("control own", "align", EVERY, pairs="own", batch=64), "plain-all", ["rate", "epochs"])
    yield then(line("control wrong joint", "align", ENGLISH, pairs="wrong"), "align", JOINT)
    yield then(line("pack-align", "pack-align", ENGLISH), "pack", PACK)


def curves() -> Iterator[dict[str, Any]]:
    """Amount, domain and number of languages; few sentences are read more often, up to the same steps."""
    for sentences, passes in ((50, 8), (100, 8), (200, 6), (400, 4)):
        text = {**ENGLISH, "sentences": sentences}
        yield then(line(f"sentences {sentences}", "pack", text, pack_passes=passes), "pack", ["rate", "pack_rate"])
    for source in ("tatoeba", "tico"):
        text = {**ENGLISH, "source": source}
        yield then(line(f"source {source}", "pack", text), "pack", PACK)
    others = [lang for lang in SIB if lang != "en" and lang not in WITH_TEXT]
    text = {"languages": list(WITH_TEXT), "without": others}
    yield then(line("languages 11", "pack", text), "pack", PACK)


def few_labels() -> Iterator[dict[str, Any]]:
    """Fifty labels in every language, and fifty in English alone."""
    few = {"answered": list(SIB), "labels": 50}
    for rate in (5e-5, 1e-4):
        yield line("50 plain", "plain", {**few, "without": list(NEVER)}, rate=rate)
        yield line("50 pack", "pack", {**few, "without": list(NEVER)}, rate=rate)
    english = {"labels": 100, "without": list(NEVER)}
    yield line("100 English plain", "plain", english, epochs=12)
    yield line("100 English pack", "pack", english, epochs=12)


def lines() -> Iterator[dict[str, Any]]:
    """The whole plan."""
    yield from searches()
    yield from rivals_first()
    yield from seeds()
    yield from controls()
    yield from variants()
    yield from rest_of_rivals()
    yield from few_labels()
    yield from curves()


def rivals_first() -> Iterator[dict[str, Any]]:
    """The rivals' searches, which their seeds wait for."""
    yield from (one for one in rivals() if "after" not in one)


def rest_of_rivals() -> Iterator[dict[str, Any]]:
    """Their seeds."""
    yield from (one for one in rivals() if "after" in one)


if __name__ == "__main__":
    for one in lines():
        sys.stdout.write(json.dumps(one) + "\n")
