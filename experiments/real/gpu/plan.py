"""The plan of GPU sessions, most valuable first: `python -m experiments.real.gpu.plan > plan.jsonl`.

Searches run with seed 0 and are decided on `dev`; seeds 1 and 2 of what was chosen follow. Every recipe's own rate is
searched, and its weight or its amount of passes where it has one. Records of an earlier session are handed to the
workers (`--known`), whose cells are then not run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.real.plans import PLANS
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


def then(one: dict[str, Any], after: str | list[str], take: Sequence[str]) -> dict[str, Any]:
    """The line with the options `take` of the best of a group, or of several."""
    return {**one, "after": after, "take": list(take)}


BOTH = ["pack", "pack-rate"]
PACK = ("rate", "pack_rate", "pack_passes")
JOINT = ("rate", "weight")
FIRST = {"pack_passes": 1}  # of the text, where it is trained on before the answers: a pass with targets is expensive


def searches() -> Iterator[dict[str, Any]]:
    """Rates first: nothing below means much without them."""
    yield line("base", "base", ENGLISH)
    for rate in (3e-5, 2e-5, 5e-5, 1e-4):
        yield line("plain", "plain", ENGLISH, rate=rate)
    for rate, weight in ((3e-5, 1.0), (3e-5, 3.0), (5e-5, 3.0), (5e-5, 1.0), (5e-5, 0.3), (1e-4, 0.3), (1e-4, 1.0)):
        yield line("align", "align", ENGLISH, rate=rate, weight=weight)
    for pack_rate, passes in ((1e-4, 1), (5e-5, 1), (1e-4, 4), (1e-4, 2), (5e-5, 2), (2e-4, 2)):
        yield line("pack", "pack", ENGLISH, rate=5e-5, pack_rate=pack_rate, pack_passes=passes)
    for rate, epochs in ((3e-5, 1), (5e-5, 1), (1e-4, 1)):
        yield line("plain-all", "plain", EVERY, rate=rate, batch=64, epochs=epochs)
    for rate in (1e-4, 3e-5):
        yield then(line("pack-rate", "pack", ENGLISH, rate=rate), "pack", ["pack_rate", "pack_passes"])


def seeds() -> Iterator[dict[str, Any]]:
    """The main comparison, with the options that the searches chose."""
    for seed in (1, 2):
        yield then(line("plain-seeds", "plain", ENGLISH, seed), "plain", ["rate"])
        yield then(line("align-seeds", "align", ENGLISH, seed), "align", JOINT)
        yield then(line("pack-seeds", "pack", ENGLISH, seed), BOTH, PACK)
        yield then(line("plain-all-seeds", "plain", EVERY, seed, batch=64), "plain-all", ["rate", "epochs"])


def few_labels() -> Iterator[dict[str, Any]]:
    """A hundred labels in English alone, and fifty in every language; their packs are those of the searches."""
    english = {**ENGLISH, "labels": 100}
    few = {**EVERY, "labels": 50}
    taken = ["pack_rate", "pack_passes"]
    for rate in (5e-5, 3e-5, 1e-4):
        yield line("100 English plain", "plain", english, epochs=12, rate=rate)
        yield then(line("100 English align", "align", english, epochs=12, rate=rate), "align", ["weight"])
        yield then(line("100 English pack", "pack", english, epochs=12, rate=rate), "pack", taken)
        yield line("100 English pseudo", "pseudo", english, epochs=12, rate=rate)
        yield line("50 plain", "plain", few, rate=rate)
        yield then(line("50 align", "align", few, rate=rate), "align", ["weight"])
        yield then(line("50 pack", "pack", few, rate=rate), "pack", taken)


def few_labels_seeds() -> Iterator[dict[str, Any]]:
    """Their further seeds, each with labels of other sentences."""
    for seed in (1, 2):
        english, few = {**ENGLISH, "labels": 100, "order": seed}, {**EVERY, "labels": 50, "order": seed}
        for group, recipe, text, epochs, take in (
            ("100 English plain", "plain", english, 12, ["rate"]),
            ("100 English align", "align", english, 12, JOINT),
            ("100 English pack", "pack", english, 12, PACK),
            ("100 English pseudo", "pseudo", english, 12, ["rate"]),
            ("50 plain", "plain", few, 4, ["rate"]),
            ("50 align", "align", few, 4, JOINT),
            ("50 pack", "pack", few, 4, PACK),
        ):
            yield then(line(f"{group}-seeds", recipe, text, seed, epochs=epochs), group, take)


def rivals() -> Iterator[dict[str, Any]]:
    """The same text in other ways."""
    for rate, weight in ((3e-5, 5.0), (5e-5, 5.0), (5e-5, 1.0), (1e-4, 1.0)):
        yield line("cc", "cc", ENGLISH, rate=rate, weight=weight, loss="standardized")
    for rate in (3e-5, 5e-5, 1e-4):
        yield line("pseudo", "pseudo", ENGLISH, rate=rate)
        yield line("mid-align", "mid-align", ENGLISH, rate=rate)
        yield line("distil", "distil", ENGLISH, rate=rate)
        yield line("translation-rows", "translation-rows", ENGLISH, rate=rate)


def rivals_seeds() -> Iterator[dict[str, Any]]:
    """Their further seeds."""
    for seed in (1, 2):
        yield then(line("cc-seeds", "cc", ENGLISH, seed, loss="standardized"), "cc", JOINT)
        yield then(line("pseudo-seeds", "pseudo", ENGLISH, seed), "pseudo", ["rate"])
        yield then(line("mid-align-seeds", "mid-align", ENGLISH, seed), "mid-align", ["rate"])
        yield then(line("distil-seeds", "distil", ENGLISH, seed), "distil", ["rate"])
        yield then(line("translation-rows-seeds", "translation-rows", ENGLISH, seed), "translation-rows", ["rate"])


def expensive_rivals() -> Iterator[dict[str, Any]]:
    """Training on the text with targets first, which takes longest, and two that need a pack or activations."""
    yield line("swap", "swap", ENGLISH, **FIRST)
    yield line("incline", "incline", ENGLISH, rate=3e-5)
    for rate in (5e-5, 1e-4):
        yield line("translation-first", "translation-first", ENGLISH, pack_rate=rate, **FIRST)
        yield line("text-first", "text-first", ENGLISH, pack_rate=rate, **FIRST)


def variants() -> Iterator[dict[str, Any]]:
    """Loss, site, pool and layers of the pack, at the searched rates: what settles the defaults."""
    for name, setting in (
        ("standardized", {"loss": "standardized"}),
        ("text_last", {"pool": "text_last"}),
        ("layers 6-12", {"layers": list(range(6, 13))}),
        ("layers 9-15", {"layers": list(range(9, 16))}),
        ("ffn", {"at": "ffn"}),
        ("layer 8", {"layers": [8]}),
    ):
        yield then(line(f"variant {name}", "pack", ENGLISH, **setting), BOTH, PACK)


def controls() -> Iterator[dict[str, Any]]:
    """What should do worse."""
    yield then(line("control wrong", "pack", ENGLISH, pairs="wrong"), BOTH, PACK)
    yield then(line("control relative", "pack", ENGLISH, loss="relative"), BOTH, PACK)
    yield then(line("control current", "pack", ENGLISH, reference_weights="current"), BOTH, PACK)
    yield then(line("control wrong joint", "align", ENGLISH, pairs="wrong"), "align", JOINT)
    yield then(line("control own", "align", EVERY, pairs="own", batch=64), "plain-all", ["rate", "epochs"])
    yield then(line("pack-align", "pack-align", ENGLISH), BOTH, PACK)


def curves() -> Iterator[dict[str, Any]]:
    """Amount, domain and number of languages; few sentences are read more often."""
    for sentences, passes in ((200, 6), (50, 8), (400, 4), (100, 8)):
        text = {**ENGLISH, "sentences": sentences}
        yield then(line(f"sentences {sentences}", "pack", text, pack_passes=passes), BOTH, ["rate", "pack_rate"])
    for source in ("tatoeba", "tico"):
        yield then(line(f"source {source}", "pack", {**ENGLISH, "source": source}), BOTH, PACK)
    others = [lang for lang in SIB if lang != "en" and lang not in WITH_TEXT]
    text = {"languages": list(WITH_TEXT), "without": others}
    yield then(line("languages 11", "pack", text), BOTH, PACK)


def small(*names: str) -> Iterator[dict[str, Any]]:
    """Plans for two cores (plans.py), their groups named after them."""
    for name in names:
        for one in PLANS[name][0]():
            more = {"after": f"{name}: {one['after']}"} if "after" in one else {}
            yield {**one, "group": f"{name}: {one['group']}", **more}


def lines() -> Iterator[dict[str, Any]]:
    """The whole plan."""
    yield from searches()
    yield from small("smollm2")
    yield from seeds()
    yield from few_labels()
    yield from small("quality")
    yield from few_labels_seeds()
    yield from small("facts", "several", "translated")
    for part in (rivals, curves, rivals_seeds):
        yield from part()
    yield from small("packs")
    for part in (variants, controls, expensive_rivals):
        yield from part()


if __name__ == "__main__":
    for one in lines():
        sys.stdout.write(json.dumps(one) + "\n")
