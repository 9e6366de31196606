"""The lab's worlds with their bases, by name: what varies between conditions is said here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cctuning.lab.base import BaseConfig
from cctuning.lab.cldr import build_world
from cctuning.lab.controlled import ControlledWorld
from cctuning.lab.worlds import World


@dataclass(frozen=True)
class Setup:
    """A world and a base, each made from one seed."""

    says: str
    make: Callable[[int], World]
    config: BaseConfig

    def world(self, seed: int) -> World:
        return self.make(seed)

    def base(self, seed: int) -> BaseConfig:
        return replace(self.config, seed=seed)


def _facts(seed: int) -> World:
    return ControlledWorld("facts", seed)


def _skills(seed: int) -> World:
    return ControlledWorld("skills", seed)


def _cldr(seed: int) -> World:
    return build_world(seed=seed)


SETUPS: dict[str, Setup] = {
    "facts": Setup(
        "invented people; languages with orders of their own, grafted on English",
        _facts,
        BaseConfig(english_steps=2500),
    ),
    "skills": Setup("sums, sorting, comparison, topics; the same languages", _skills, BaseConfig(english_steps=4000)),
    "cldr": Setup("real names of places; six languages of six scripts, grafted on English", _cldr, BaseConfig()),
}
