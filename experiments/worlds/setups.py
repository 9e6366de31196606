"""The lab's worlds with their bases, by name: what varies between conditions is said here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cctuning.demo.base import BaseConfig
from cctuning.demo.cldr import LANGUAGES, build_world
from cctuning.demo.worlds import World
from experiments.worlds.controlled import ControlledWorld
from experiments.worlds.tico import build_world as build_tico


@dataclass(frozen=True)
class Setup:
    """A world and a base, each made from one seed.

    Attributes:
        search: option -> values to try, for every recipe in place of its own search; recipes that this would change
            in kind are refused.
        trained: options of the trainer in place of the lab's.
        benchmarks: of `cctuning evaluate`, on which recipes are scored besides the test split.
    """

    says: str
    make: Callable[[int], World]
    config: BaseConfig
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)
    benchmarks: tuple[str, ...] = ()

    def world(self, seed: int) -> World:
        return self.make(seed)

    def base(self, seed: int) -> BaseConfig:
        return replace(self.config, seed=seed)


def _controlled(kind: str, **knobs: Any) -> Callable[[int], World]:
    return lambda seed: ControlledWorld(kind, seed, **knobs)


def _cldr(seed: int) -> World:
    return build_world(seed=seed)


def _cldr_22(seed: int) -> World:
    return build_world(LANGUAGES, seed)


_FACTS = BaseConfig(english_steps=2500)
_THINGS = replace(_FACTS, joint_steps=400, keep=0.8, noise=0.3)
# At the narrow base's rate a wide one does not learn what is English-only.
_WIDE: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 576, "learning_rate": 1.5e-3}
_EMERGENT = BaseConfig(english_steps=5000, emergent=True, share=(("high", 0.38), ("mid", 0.30), ("low", 0.20)))
_REAL = BaseConfig(
    hidden_size=512,
    intermediate_size=1408,
    layers=8,
    heads=8,
    english_steps=1000,
    batch_size=80,
    learning_rate=1e-3,
    share=(("high", 0.57), ("mid", 0.57), ("low", 0.57)),
    emergent=True,
    switched=0,
    vocab=16000,
    positions=320,
)
_PLENTY = (("high", 0.9), ("mid", 0.9), ("low", 0.9))

SETUPS: dict[str, Setup] = {
    "facts": Setup("invented people; orders of their own, grafted on English", _controlled("facts"), _FACTS),
    "things": Setup(
        "invented things described, chosen, compared; the same languages, grafted closer on English",
        _controlled("things"),
        _THINGS,
    ),
    "things-wide": Setup("`things` on a base of twice the size", _controlled("things"), replace(_THINGS, **_WIDE)),
    "sums": Setup(
        "sums in words; orders of their own, grafted on English", _controlled("sums"), BaseConfig(english_steps=1800)
    ),
    "skills": Setup(
        "sums, sorting, comparison, topics; the same languages",
        _controlled("skills"),
        BaseConfig(english_steps=4000),
    ),
    "cldr": Setup("real names of places; six languages of six scripts, grafted on English", _cldr, BaseConfig()),
    "cldr-faint": Setup("the same, concepts shared half as well", _cldr, BaseConfig(keep=0.3)),
    # Three lines of each language in 900 steps: as many as `cldr` reads in 300 steps of nine.
    "cldr-22": Setup(
        "real names of places; 21 languages of 21 scripts, grafted on English",
        _cldr_22,
        BaseConfig(batch_size=66, joint_steps=900),
    ),
    "facts-emergent": Setup(
        "nothing grafted: parallel and code-switched text, all languages from the first step",
        _controlled("facts"),
        _EMERGENT,
    ),
    "things-emergent": Setup(
        "things described, chosen, compared; nothing grafted, as in `facts-emergent`, word lists code-switched too",
        _controlled("things"),
        replace(_EMERGENT, switched_lists=4),
    ),
    "tico": Setup(
        "real text, for a GPU: sentences of TICO-19 whose documents were named in English alone; eight languages",
        build_tico,
        _REAL,
        search={"learning_rate": (1e-4, 2e-4, 4e-4), "num_train_epochs": (3,)},
        trained={"per_device_train_batch_size": 64, "max_length": 384},
        benchmarks=("XNLI", "XStoryCloze", "XCOPA"),
    ),
    # One condition changed in `facts`, each:
    "facts-apart": Setup("no concept shared in the base", _controlled("facts"), replace(_FACTS, keep=0.0)),
    "facts-faint": Setup("concepts shared half as well", _controlled("facts"), replace(_FACTS, keep=0.3)),
    "facts-turned": Setup("parts of names the other way round", _controlled("facts", turned=True), _FACTS),
    "facts-wide": Setup(
        "a base of twice the size",
        _controlled("facts"),
        replace(_FACTS, **_WIDE),
    ),
    "facts-told": Setup(
        "nothing English-only: every language has read nine tenths of everything",
        _controlled("facts", english_only=False),
        replace(_FACTS, share=_PLENTY, joint_steps=900),
    ),
    "facts-alike": Setup("answers spelled as in English", _controlled("facts", answers_alike=True), _FACTS),
}
