"""Parallel text beside answered rows: which of it a batch takes, and the batch of both.

Each answered row brings `parallel_rows` pairs with it. Which ones depends on the epoch, the row and the seed alone, so
a run that is resumed, or dealt out to more processes, takes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import TrainerCallback

from cctuning.data import PairedCollator
from cctuning.errors import UserError

TEXT = ("text", "prompt")


class Mixture:
    """An endless order of parallel rows, in which each language has its share.

    A language with n rows has a share in proportion to n^(1 / temperature) (as in XLM-R, arXiv 1911.02116, section 3):
    1 keeps the sizes, more raises the small ones. Within a language every row is taken once before any is repeated.
    """

    def __init__(self, languages: Sequence[str], temperature: float, seed: int) -> None:
        """
        Args:
            languages: of each row. temperature, seed: as above.
        """
        self.seed = seed
        named = np.asarray(languages)
        self._rows = [np.flatnonzero(named == code) for code in sorted(set(languages))]
        sizes = np.array([len(rows) for rows in self._rows], dtype=float)
        shares = sizes ** (1.0 / temperature)
        self._quota = np.maximum(1, np.round(shares / shares.sum() * len(named))).astype(int)
        self._length = int(self._quota.sum())

    @lru_cache(maxsize=4)  # noqa: B019 - one mixture a run
    def cycle(self, number: int) -> Any:
        """Rows (M,) of the `number`-th round: of each language its share."""
        chosen = []
        for language, (rows, quota) in enumerate(zip(self._rows, self._quota, strict=True)):
            places = np.arange(number * quota, (number + 1) * quota)
            for again in np.unique(places // len(rows)):
                order = np.random.default_rng([self.seed, language, int(again)]).permutation(len(rows))
                chosen.append(rows[order[places[places // len(rows) == again] % len(rows)]])
        return np.random.default_rng([self.seed, 1 << 31, number]).permutation(np.concatenate(chosen))

    def rows(self, start: int, count: int) -> list[int]:
        """`count` rows from place `start` of the order on."""
        places = range(start, start + count)
        return [int(self.cycle(place // self._length)[place % self._length]) for place in places]


class MixingCollator:
    """Collates answered rows, each followed by its pairs."""

    def __init__(
        self, collate: PairedCollator, parallel: Dataset, mixture: Mixture, each: int, places: Mapping[int, int]
    ) -> None:
        """
        Args:
            parallel: encoded pairs. each: of them beside an answered row.
            places: an answered row's id -> its number among the answered.
        """
        self.collate, self.parallel, self.mixture, self.each, self.places = collate, parallel, mixture, each, places
        self.epoch = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As `PairedCollator`: of B rows a batch of B * (1 + each)."""
        together: list[Mapping[str, Any]] = []
        for row in rows:
            place = self.epoch * len(self.places) + self.places[int(row["row"])]
            together.append(row)
            together += [self.parallel[number] for number in self.mixture.rows(place * self.each, self.each)]
        return self.collate(together)


class EpochOfMixture(TrainerCallback):
    """Tells the collator which epoch it is, before the epoch's workers start."""

    def __init__(self, collator: MixingCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Also after a resume."""
        self.collator.epoch = int((state.epoch or 0) + 1e-6)


def as_rows(parallel: Dataset, language: str, first: int) -> Dataset:
    """Pairs as rows without a response, and each distinct reference as a row of its own, held where it is.

    Args:
        parallel: columns `text` (or `prompt`), `reference` or `<text>_<reference language>`, and `lang` if known.
        language: of the references. first: id of the first row.

    Raises:
        UserError: a column is missing.
    """
    found = parallel.column_names
    text = next((name for name in TEXT if name in found), None)
    names = ("reference", *(f"{name}_{language}" for name in TEXT))
    reference = next((name for name in names if name in found), None)
    if text is None or reference is None:
        raise UserError(
            f"parallel_dataset: expected the columns text and reference (or text_{language}), found "
            f"{', '.join(found)}."
        )
    kept = {text: "prompt", reference: "reference"}
    rest = [name for name in found if name not in (text, reference, "lang", "origin")]
    pairs = parallel.remove_columns(rest).rename_columns(kept)
    if "lang" not in found:
        pairs = pairs.add_column("lang", ["und"] * len(pairs))
    met: dict[str, int] = {}
    for number, value in enumerate(pairs["reference"]):
        met.setdefault(value, number)
    own = pairs.select(sorted(met.values()))
    own = own.remove_columns(["prompt", "lang"]).add_column("prompt", own["reference"])
    own = own.add_column("lang", [language] * len(own)).cast(pairs.features)
    both = concatenate_datasets([pairs, own])
    return both.add_column("row", list(range(first, first + len(both))))
