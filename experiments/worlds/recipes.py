"""The recipes that the lab compares, by the names of the source's tables, each with what its search may choose.

A recipe is what a user could write in a recipe file: options of the connection and of the trainer, and which rows. The
searches have eight settings each and are run on the `dev` split of bases that no table reports.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cctuning.demo.worlds import ENGLISH, World, others, replayed, rows
from experiments.worlds.mad_x import mad_x
from experiments.worlds.rivals import NOISES, Rival, xtune

Rows = list[dict[str, Any]]
RATES, DECAYS = (5e-4, 1e-3), (0.0, 50.0)
PLAIN = {"connection": "none"}
ALIGN = {"paths": "student", "decision": "fixed", "decision_value": 1.0, "transform": "none"}
START = {"reference_weights": "start"}
LORA = {"tune": "lora"}  # on every linear layer, rank 16, alpha 32, as in recipes/*.yaml


def joint(world: World) -> Rows:
    """The SFT split in every language, English included."""
    return rows(world, "sft")


def translated(world: World) -> Rows:
    """`joint`, and each question of the SFT split as a translation pair, both ways."""
    pairs = []
    for lang in others(world):
        for item in world.items(lang, "sft"):
            for one, two in ((item.prompt, item.prompt_en), (item.prompt_en, item.prompt)):
                pairs.append({"prompt": f"{one} :", "response": f" {two}", "lang": ENGLISH, "prompt_en": None})
    return joint(world) + pairs


def with_free(world: World) -> Rows:
    """`joint`, and the `free` split's questions without their answers: they train the alignment alone."""
    free = [{**row, "response": None} for row in rows(world, "free", others(world))]
    return joint(world) + free


def with_text(world: World) -> Rows:
    """`joint`, and the text of the same questions as plain language modelling, in both languages."""
    text = []
    for lang in world.languages:
        for item in world.items(lang, "free"):
            first, _, rest = item.prompt.partition(" ")
            text.append({"prompt": first, "response": f" {rest}", "lang": ENGLISH, "prompt_en": None})
    return joint(world) + text


def replayed_with_free(world: World) -> Rows:
    """`replayed`, and the `free` split's questions without their answers."""
    return with_free(world) + rows(world, "text", [ENGLISH])


def replayed_with_text(world: World) -> Rows:
    """`with_text`, and English rehearsed: the baseline of `replayed_with_free`, given the same questions."""
    return with_text(world) + rows(world, "text", [ENGLISH])


def replayed_mispaired(world: World) -> Rows:
    """`mispaired`, and English rehearsed."""
    return mispaired(world) + rows(world, "text", [ENGLISH])


def replayed_translated(world: World) -> Rows:
    """`translated`, and English rehearsed."""
    return translated(world) + rows(world, "text", [ENGLISH])


def own_parallels(world: World) -> Rows:
    """`replayed` with each row's own prompt in place of the English one."""
    return [{**row, "prompt_en": row["prompt"]} for row in replayed(world)]


def distilled(world: World) -> Rows:
    """`joint`, and the `free` questions with the answers that the world's translator makes of English's.

    The base answers English questions right (the lab checks that), so its own English answer is the true one.
    """
    return joint(world) + rows(world, "free", others(world))


def mispaired(world: World) -> Rows:
    """`joint` with the English prompt of another row: the same signal, the wrong one."""
    made = joint(world)
    foreign = [row for row in made if row["lang"] != ENGLISH]
    references = [row["prompt_en"] for row in foreign]
    half = len(references) // 2
    for row, reference in zip(foreign, references[half:] + references[:half], strict=True):
        row["prompt_en"] = reference
    return made


@dataclass(frozen=True)
class Recipe:
    """One row of a table.

    Attributes:
        says: what it is. method: options of the connection. search: option -> values to try.
        rows: its training rows. after: the recipe whose tuned model it starts from. trainer: options of the run.
        of: the recipe whose runs these are, scored without the transform.
        rival: what trains and answers in place of `cctuning train`; `method` and `search` are then its own settings.
    """

    says: str
    method: dict[str, Any]
    search: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    rows: Callable[[World], Rows] = joint
    after: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    rival: Rival | None = None

    @property
    def usual_search(self) -> bool:
        """Whether rate, length and decay are searched as for plain SFT: then another search of these will do."""
        return self.search in (_EPOCHS, _REPLAY)

    def settings(self, search: Mapping[str, tuple[Any, ...]] | None = None) -> Iterator[dict[str, Any]]:
        """Every combination of `search`, or of its own."""
        tried = self.search if search is None else search
        for values in itertools.product(*tried.values()):
            yield dict(zip(tried, values, strict=True))


_EPOCHS = {"learning_rate": RATES, "num_train_epochs": (4, 8), "base_decay": DECAYS}
_LONGER = {"learning_rate": RATES, "num_train_epochs": (12, 16), "base_decay": DECAYS}
_WEIGHT = {"learning_rate": RATES, "num_train_epochs": (8,), "align_weight": (1.0, 5.0), "base_decay": DECAYS}

_NOISE = {"noise": (*NOISES, "mixed"), "weight": (0.2, 1.0)}
_ADAPTERS = {"language_steps": (50, 100), "base_decay": (0.0, 10.0, 20.0, 50.0)}
_LONGER_REPLAY = {"learning_rate": RATES, "num_train_epochs": (12, 16), "base_decay": (0.0, 25.0)}
_REPLAY = {"learning_rate": RATES, "num_train_epochs": (8,), "base_decay": (0.0, 25.0, 50.0, 75.0)}
_HEAVIER = {
    "learning_rate": (1e-3,),
    "num_train_epochs": (8,),
    "align_weight": (1.0, 5.0, 10.0, 20.0),
    "base_decay": (0.0, 25.0),
}
_LORA_REPLAY = {"learning_rate": (5e-4, 1e-3, 3e-3, 1e-2), "num_train_epochs": (8,), "base_decay": (0.0, 10.0)}

RECIPES: dict[str, Recipe] = {
    "vanilla": Recipe("joint SFT on the same rows", PLAIN, _EPOCHS),
    "align": Recipe("joint SFT and alignment to English; no fusion, no W", ALIGN, _WEIGHT),
    "vanilla+replay": Recipe("joint SFT and English rehearsed", PLAIN, _REPLAY, replayed),
    "align+replay": Recipe("align and English rehearsed", {**ALIGN, "align_weight": 1.0}, _REPLAY, replayed),
    "cc+replay": Recipe("cc and English rehearsed", {}, _REPLAY, replayed),
    "align-start+replay": Recipe(
        "align+replay, to the English of the model's start", {**ALIGN, **START, "align_weight": 1.0}, _REPLAY, replayed
    ),
    "cc-start+replay": Recipe("the defaults and English rehearsed", START, _REPLAY, replayed),
    "align-start-weight+replay": Recipe(
        "align-start+replay, its weight searched in place of the rate", {**ALIGN, **START}, _HEAVIER, replayed
    ),
    "cc-start-weight+replay": Recipe("cc-start+replay, likewise", START, _HEAVIER, replayed),
    "cc-start-no-decision-weight+replay": Recipe(
        "cc-start-no-decision+replay, likewise", {"decision": "fixed", **START}, _HEAVIER, replayed
    ),
    "vanilla-lora+replay": Recipe("vanilla+replay, a LoRA", PLAIN, _LORA_REPLAY, replayed, trainer=LORA),
    "align-start-lora+replay": Recipe(
        "align-start+replay, a LoRA", {**ALIGN, **START, "align_weight": 1.0}, _LORA_REPLAY, replayed, trainer=LORA
    ),
    "cc-start-lora+replay": Recipe("cc-start+replay, a LoRA", START, _LORA_REPLAY, replayed, trainer=LORA),
    "own-start+replay": Recipe(
        "align-start+replay, each row to its own prompt at the start: no English signal",
        {**ALIGN, **START, "align_weight": 1.0},
        _REPLAY,
        own_parallels,
    ),
    "align-start+free+replay": Recipe(
        "align-start+replay and questions without answers",
        {**ALIGN, **START, "align_weight": 1.0},
        _REPLAY,
        replayed_with_free,
    ),
    "cc-start+free+replay": Recipe(
        "cc-start+replay and questions without answers", START, _REPLAY, replayed_with_free
    ),
    "more-steps+replay": Recipe("vanilla+replay for longer", PLAIN, _LONGER_REPLAY, replayed),
    "capacity+replay": Recipe(
        "cc's transform, no English signal, English rehearsed",
        {"paths": "student", "align_weight": 0.0},
        _REPLAY,
        replayed,
    ),
    "vanilla+text+replay": Recipe("vanilla+replay and the same questions as text", PLAIN, _REPLAY, replayed_with_text),
    "cc-start-no-decision+replay": Recipe(
        "cc-start+replay, a = 0.5 everywhere", {"decision": "fixed", **START}, _REPLAY, replayed
    ),
    "cc-start-no-transform+replay": Recipe(
        "cc-start+replay without W, in training too", {"transform": "none", **START}, _REPLAY, replayed
    ),
    "wrong-english-start+replay": Recipe(
        "cc-start+replay with another row's English", START, _REPLAY, replayed_mispaired
    ),
    "translation+replay": Recipe("translation and English rehearsed", PLAIN, _REPLAY, replayed_translated),
    "cc-start+translation+replay": Recipe(
        "cc-start+replay and translation pairs", START, _REPLAY, replayed_translated
    ),
    "translation": Recipe("joint SFT and translation pairs", PLAIN, _EPOCHS, translated),
    "distillation": Recipe("joint SFT and the base's English answers to more questions", PLAIN, _EPOCHS, distilled),
    "cc": Recipe("the gated connection, aligned to the model as it trains", {}, _EPOCHS),
    "cc-no-decision": Recipe("a = 0.5 everywhere", {"decision": "fixed"}, _EPOCHS),
    "cc-no-transform": Recipe("trained as cc, inference without W", {}, _EPOCHS, of="cc"),
    "cc-nonlinear": Recipe("cc with a non-linear transform", {"transform": "nonlinear"}, _EPOCHS),
    "transform-only": Recipe(
        "W alone, fitted after vanilla",
        {"paths": "student", "decision": "fixed", "decision_value": 1.0},
        _EPOCHS,
        after="vanilla",
        trainer={"tune": "connection"},
    ),
    "cc+translation": Recipe("cc and translation pairs", {}, _EPOCHS, translated),
    "cc-adaptive": Recipe("the paper's code's connection", {"connection": "adaptive"}, _EPOCHS),
    "xtune": Recipe(
        "joint SFT and the same answer to a noised prompt",
        {"learning_rate": 1e-3, "num_train_epochs": 8, "base_decay": 50.0, "noise": "switched", "weight": 1.0},
        _NOISE,
        rival=xtune,
    ),
    "mad-x": Recipe(
        "an adapter a language under one for the task; the base frozen",
        {"learning_rate": 1e-3, "num_train_epochs": 8, "language_rate": 1e-3, "language_steps": 100},
        _ADAPTERS,
        rival=mad_x,
    ),
    "cc-both-passes": Recipe("cc with both passes a row", {"paths": "both"}, _EPOCHS),
    "cc-fused-only": Recipe("the literal recipe: the fused pass alone", {"paths": "fused"}, _EPOCHS),
    "cc-fused-only+replay": Recipe("the fused pass, English rehearsed", {"paths": "fused"}, _REPLAY, replayed),
    "more-steps": Recipe("joint SFT for longer", PLAIN, _LONGER),
    "capacity": Recipe("cc's transform, no English signal", {"paths": "student", "align_weight": 0.0}, _EPOCHS),
    "wrong-english": Recipe("cc with another row's English", {}, _EPOCHS, mispaired),
    "cc+free": Recipe("cc and questions without answers", {}, _EPOCHS, with_free),
    "align+free": Recipe("align and the same questions", ALIGN, _WEIGHT, with_free),
    "vanilla+text": Recipe("joint SFT and the same questions as text", PLAIN, _EPOCHS, with_text),
}
