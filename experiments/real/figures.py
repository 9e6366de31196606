"""Compute accuracies by language and tier, and paired differences with intervals, from records.

An interval is a bootstrap over items, each drawn in all its languages at once, of the seeds' mean: it says how much
other sentences could change the difference. How much another seed could is shown beside it, as the seeds' spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctuning.errors import UserError
from cctuning.evaluation.statistics import Interval, clustered_bootstrap
from experiments.real.worlds import ENGLISH

Array = NDArray[np.float64]
Record = Mapping[str, Any]


def flags(records: Sequence[Record], split: str, languages: Sequence[str]) -> Array:
    """Return [items, languages]: the share of seeds (one record each) that answered right."""
    if not records:
        raise UserError("figures: no record of this recipe; run its cells first.")
    versions = {(record["data"], record["base"]) for record in records}
    if len(versions) > 1:
        raise UserError(
            f"figures: records of {len(versions)} versions of the rows or the base; they cannot be pooled."
        )
    seeds = [
        np.array([[int(one) for one in record["right"][split][lang]] for lang in languages], dtype=float).T
        for record in records
    ]
    return np.mean(seeds, axis=0)


def others(record: Record) -> list[str]:
    """Return the languages of a record other than English."""
    return [lang for lang in record["right"]["test"] if lang != ENGLISH]


def accuracy(records: Sequence[Record], split: str, languages: Sequence[str]) -> float:
    """Return the mean over languages and seeds, %."""
    return 100 * float(flags(records, split, languages).mean())


def spread(records: Sequence[Record], split: str, languages: Sequence[str]) -> float:
    """Return the standard deviation of that mean between seeds, points; 0 with one seed."""
    values = [accuracy([record], split, languages) for record in records]
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def difference(one: Sequence[Record], two: Sequence[Record], split: str, languages: Sequence[str]) -> Interval:
    """Return two - one in points, mean over languages, with its 95 % interval over items, for the seeds of both.

    A seed also chooses which rows are labelled, where there are few: seeds that one side lacks would not be paired.
    """
    both = {_seed(record) for record in one} & {_seed(record) for record in two}
    if both:
        one, two = ([record for record in side if _seed(record) in both] for side in (one, two))
    return clustered_bootstrap([100 * (flags(two, split, languages) - flags(one, split, languages))])


def _seed(record: Record) -> int:
    return int(record["cell"]["seed"])


@dataclass(frozen=True)
class Tiers:
    """Languages in thirds by their accuracy after plain SFT on English rows: how well the base knows them."""

    high: tuple[str, ...]
    mid: tuple[str, ...]
    low: tuple[str, ...]

    @classmethod
    def of(cls, plain: Sequence[Record]) -> Tiers:
        """From the records of plain SFT, by `dev`, so that figures of `test` do not decide the tiers."""
        languages = sorted(others(plain[0]), key=lambda lang: -accuracy(plain, "dev", [lang]))
        third = len(languages) / 3
        cuts = round(third), round(2 * third)
        return cls(tuple(languages[: cuts[0]]), tuple(languages[cuts[0] : cuts[1]]), tuple(languages[cuts[1] :]))


def best(groups: Mapping[Any, Sequence[Record]], languages: Sequence[str] | None = None) -> Any:
    """Return the key with the best mean on `dev` over the languages other than English (the first if tied)."""
    if not groups:
        raise UserError("search: no record to choose from; run the cells of the search first.")
    first = next(iter(groups.values()))[0]
    chosen = list(languages) if languages else others(first)
    return max(groups, key=lambda name: accuracy(groups[name], "dev", chosen))


def signed(interval: Interval) -> str:
    """Return `+1.2 (-0.3 to +2.7)`."""
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
