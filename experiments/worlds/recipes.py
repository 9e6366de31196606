"""The worlds with their bases, and the recipes compared in them.

A recipe is what a user could write in a YAML file: options of the connection and of the trainer, and its rows. Its
search has eight settings and runs on the `dev` split of a base that no table reports. English is rehearsed in all:
questions of the `text` split with the base's own answers are among the rows. `start` is the default of
`reference_weights`; without it a recipe aligns to the model as it trains, as in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cctuning.demo.base import ENGLISH, BaseConfig, World
from cctuning.demo.cldr import PlacesWorld, others, replayed, rows
from cctuning.errors import UserError
from experiments.worlds.facts import FactsWorld

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Setup:
    """A world and a base, each made from one seed."""

    says: str
    make: Callable[[int], World]
    config: BaseConfig

    def base(self, seed: int) -> BaseConfig:
        """How the base of this seed is made."""
        return replace(self.config, seed=seed)


_FACTS = BaseConfig(english_steps=2500)
SETUPS = {
    "facts": Setup("invented people; languages with an order of their own, grafted on English", FactsWorld, _FACTS),
    "facts-faint": Setup("`facts` with concepts shared half as well", FactsWorld, replace(_FACTS, keep=0.3)),
    "facts-apart": Setup("`facts` with no concept shared", FactsWorld, replace(_FACTS, keep=0.0)),
    "cldr": Setup(
        "the demo's world: names of real places in six languages of six scripts, grafted on English",
        lambda seed: PlacesWorld(seed=seed),
        BaseConfig(),
    ),
}


def with_own_prompts(world: World) -> Rows:
    """`replayed` with each row's own prompt in place of its English one."""
    return [{**row, "prompt_en": row["prompt"]} for row in replayed(world)]


def mispaired(world: World) -> Rows:
    """`replayed` with the English prompt of another row."""
    made = replayed(world)
    foreign = [row for row in made if row["lang"] != ENGLISH]
    references = [row["prompt_en"] for row in foreign]
    half = len(references) // 2
    for row, reference in zip(foreign, references[half:] + references[:half], strict=True):
        row["prompt_en"] = reference
    return made


def with_free(world: World) -> Rows:
    """`replayed`, and the `free` split's questions without their answers.

    Raises:
        UserError: the world has no such split.
    """
    try:
        free = rows(world, "free", others(world))
    except KeyError:
        raise UserError("default+free+replay: this world has no questions without answers; leave it out.") from None
    return replayed(world) + [{**row, "response": None} for row in free]


RATES = (5e-4, 1e-3)
USUAL = {"learning_rate": RATES, "num_train_epochs": (8,), "base_decay": (0.0, 25.0, 50.0, 75.0)}
BY_WEIGHT = {
    "learning_rate": (1e-3,),
    "num_train_epochs": (8,),
    "align_weight": (1.0, 5.0, 10.0, 20.0),
    "base_decay": (0.0, 25.0),
}
GATED = {"connection": "gated", "reference_weights": "start"}
ALIGNED = {**GATED, "paths": "student", "decision": "fixed", "decision_value": 1.0, "transform": "none"}


@dataclass(frozen=True)
class Recipe:
    """A line of a table.

    Attributes:
        method: options of the connection. search: option -> values to try.
    """

    says: str
    method: dict[str, Any]
    rows: Callable[[World], Rows] = replayed
    search: dict[str, tuple[Any, ...]] = field(default_factory=lambda: USUAL)

    def settings(self) -> Iterator[dict[str, Any]]:
        """Every combination of `search`."""
        for values in itertools.product(*self.search.values()):
            yield dict(zip(self.search, values, strict=True))


RECIPES = {
    "vanilla+replay": Recipe("plain SFT", {"connection": "none"}),
    "default+replay": Recipe("connection: align, the package's default", {"connection": "align"}),
    "default+free+replay": Recipe("the same, and questions without answers", {"connection": "align"}, with_free),
    "align-start+replay": Recipe("cc's alignment without gate, fusion and W", {**ALIGNED, "align_weight": 1.0}),
    "cc-start+replay": Recipe("connection: gated, as in the paper but for its reference", GATED),
    "cc+replay": Recipe(
        "the paper's: aligned to the model as it trains", {"connection": "gated", "reference_weights": "current"}
    ),
    "align-start-weight+replay": Recipe("align-start, its weight searched", ALIGNED, search=BY_WEIGHT),
    "cc-start-weight+replay": Recipe("cc-start, its weight searched", GATED, search=BY_WEIGHT),
    "cc-start-no-decision+replay": Recipe(
        "cc-start, half of the reference everywhere", {**GATED, "decision": "fixed"}
    ),
    "cc-start-no-transform+replay": Recipe("cc-start without W", {**GATED, "transform": "none"}),
    "own-start+replay": Recipe(
        "align-start, each row to its own prompt: no English", {**ALIGNED, "align_weight": 1.0}, with_own_prompts
    ),
    "wrong-english-start+replay": Recipe("cc-start with another row's English", GATED, mispaired),
}
