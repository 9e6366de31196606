"""Train on parallel text before and beside answered rows.

Each answered row brings `parallel_rows` pairs of parallel text. Which ones depends only on epoch, row and seed, so a
run that is resumed, or runs on more processes, takes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from cctuning.data import PairedCollator
from cctuning.data.in_memory import in_schema
from cctuning.errors import UserError
from cctuning.training.config import CCConfig
from cctuning.training.sampling import EpochTrainer


class MixingTrainer(EpochTrainer):
    """An `EpochTrainer` with parallel text: alone in the first `align_first` steps, then beside each answered row.

    The first steps precede the first epoch and are logged as epoch 0; the step of a checkpoint tells how many of them
    are done. The pairs beside the rows continue where they ended: every pair comes once before any is repeated.
    """

    args: CCConfig

    _mixing: MixingCollator | None = None

    def get_train_dataloader(self) -> Any:
        """As the parent's; with parallel text each row brings its pairs."""
        plain: Any = self.data_collator
        self.data_collator = self.training_collator()
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def training_collator(self) -> Any:
        """The collator of training batches."""
        if self.parallel is None or not self.args.parallel_rows:
            return self.data_collator
        rows: Any = self.train_dataset
        plain: Any = self.data_collator
        places = {row: place for place, row in enumerate(sorted(rows["row"]))}
        taken = self.args.align_first * self._pairs_a_step() if self.args.align_first else 0
        each = self.args.parallel_rows
        self._mixing = MixingCollator(plain, self.parallel, self._mixture(), each, places, taken)
        return self._mixing

    def _mixture(self) -> Mixture:
        assert self.parallel is not None
        return Mixture(self.parallel["lang"], self.args.parallel_temperature, self.args.seed)

    def _tokens_a_pair(self) -> float:
        """Mean number of tokens of a parallel row, as the mixture takes them."""
        assert self.parallel is not None
        lengths = np.asarray([len(ids) for ids in self.parallel["input_ids"]])
        return float(lengths[self._mixture().cycle(0)].mean())

    def _tokens_beside(self) -> int:
        if self.parallel is None or not self.args.packing:
            return 0
        return round(self.args.parallel_rows * self._tokens_a_pair())

    def _pairs_a_batch(self) -> int:
        """Parallel rows in a batch of `align_first`; with `packing` as many as fill its bins, on average."""
        if not self.args.packing or self.args.max_length is None:
            return self._train_batch_size
        return max(1, int(self._train_batch_size * self.args.max_length / self._tokens_a_pair()))

    def _pairs_a_step(self) -> int:
        return self._pairs_a_batch() * self.args.gradient_accumulation_steps * max(1, self.args.world_size)

    # -- align_first -------------------------------------------------------------------------------------------------

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the parent's; the steps of `align_first` come on top of the epochs' (`max_steps` counts them)."""
        *others, samples, total, in_epoch, steps = super().set_initial_training_values(args, dataloader)
        if args.align_first and args.max_steps <= 0:
            samples, steps = samples + args.align_first * total, steps + args.align_first
        return *others, samples, total, in_epoch, steps

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *args: Any) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        if self.args.align_first:
            epochs, steps = divmod(max(0, self.state.global_step - self.args.align_first), num_update_steps_per_epoch)
            batches = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
        return epochs, batches

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step < self.args.align_first:
            self._align_first(model, kwargs)
            if self.control.should_training_stop:
                return None
            kwargs["resume_from_checkpoint"] = None  # the epoch begins at its first batch
        if self._mixing is not None:
            self._mixing.epoch = epoch  # before the epoch's workers start
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def _align_first(self, model: Any, kwargs: dict[str, Any]) -> None:
        """Run the steps of `align_first` that are left, as an epoch before the first."""
        steps, parts = self.args.align_first, self.args.gradient_accumulation_steps
        assert self.parallel is not None
        order = self._mixture().rows(0, steps * self._pairs_a_step())
        rows = self.parallel.select(order)
        loader: Any = self._get_dataloader(
            rows, "Alignment", self._pairs_a_batch(), sampler_fn=lambda _: SequentialSampler(order), is_training=True
        )
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        before = {
            "train_dataloader": loader,
            "steps_in_epoch": steps * parts,
            "num_update_steps_per_epoch": steps,
            "epochs_trained": -1,
            "steps_trained_in_current_epoch": self.state.global_step * parts,
        }
        still = EpochStaysZero()
        self.callback_handler.callbacks.insert(0, still)
        epochs, self._order = self._order, None  # the steps are whole: accelerate repeats no row
        try:
            super()._run_epoch(model, -1, **kwargs | before)
        finally:
            self._order = epochs
            self.remove_callback(still)


class Mixture:
    """An endless order of parallel rows in which each language has its share.

    A language with n rows has a share proportional to n^(1 / temperature) (XLM-R, arXiv 1911.02116, section 3): 1 is
    by size, more raises small languages. Within a language every row comes once before any is repeated.
    """

    def __init__(self, languages: Sequence[str], temperature: float, seed: int) -> None:
        """`languages` has the language of each row."""
        self.seed = seed
        named = np.asarray(languages)
        self._rows = [np.flatnonzero(named == code) for code in sorted(set(languages))]
        sizes = np.array([len(rows) for rows in self._rows], dtype=float)
        shares = sizes ** (1.0 / temperature)
        self._quota = np.maximum(1, np.round(shares / shares.sum() * len(named))).astype(int)
        self._length = int(self._quota.sum())

    @lru_cache(maxsize=4)  # noqa: B019 - one mixture a run
    def cycle(self, number: int) -> Any:
        """Row numbers (M,) of the `number`-th round, of each language its share."""
        chosen = []
        for language, (rows, quota) in enumerate(zip(self._rows, self._quota, strict=True)):
            places = np.arange(number * quota, (number + 1) * quota)
            for again in np.unique(places // len(rows)):
                order = np.random.default_rng([self.seed, language, int(again)]).permutation(len(rows))
                chosen.append(rows[order[places[places // len(rows) == again] % len(rows)]])
        return np.random.default_rng([self.seed, 1 << 31, number]).permutation(np.concatenate(chosen))

    def rows(self, start: int, count: int) -> list[int]:
        """`count` row numbers from place `start` of the order."""
        places = range(start, start + count)
        return [int(self.cycle(place // self._length)[place % self._length]) for place in places]


class MixingCollator:
    """Collate answered rows, each followed by its pairs."""

    def __init__(
        self,
        collate: PairedCollator,
        parallel: Dataset,
        mixture: Mixture,
        each: int,
        places: Mapping[int, int],
        taken: int = 0,
    ) -> None:
        """
        Args:
            parallel: encoded pairs.
            mixture: their order.
            each: pairs for each answered row.
            places: id of an answered row -> its number among the answered rows.
            taken: pairs that came before.
        """
        self.collate, self.parallel, self.mixture, self.each, self.places = collate, parallel, mixture, each, places
        self.taken, self.epoch = taken, 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As `PairedCollator`, with B * (1 + each) rows for B answered rows."""
        together: list[Mapping[str, Any]] = []
        for row in rows:
            place = self.epoch * len(self.places) + self.places[int(row["row"])]
            together.append(row)
            together += [
                self.parallel[number] for number in self.mixture.rows(self.taken + place * self.each, self.each)
            ]
        return self.collate(together)


class EpochStaysZero(TrainerCallback):
    """Log and save epoch 0 for the steps before the first epoch."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.epoch = 0.0


def with_parallel(rows: Dataset | None, pairs: Dataset, args: CCConfig) -> tuple[Dataset, Dataset | None]:
    """The rows of an epoch, and the parallel rows beside them.

    Args:
        rows: answered rows; None: the parallel text is the epoch (and the second result is None).
        pairs: parallel text, as `as_rows` takes it.
    """
    first = 0 if rows is None else max(rows["row"]) + 1 if "row" in rows.column_names else len(rows)
    parallel = as_rows(pairs, args.reference_language, first)
    if rows is not None:
        return rows, parallel if args.parallel_rows or args.align_first else None
    if args.align_first:
        raise UserError("align_first: there are no answered rows to come after the parallel text; leave it out.")
    mixture = Mixture(parallel["lang"], args.parallel_temperature, args.seed)
    chosen = parallel.select(mixture.cycle(0)).remove_columns("row")
    return chosen.add_column("row", list(range(len(chosen)))), None


def without_references(rows: Dataset) -> Dataset:
    """Encoded rows with their references removed."""
    return rows.map(lambda row: {"reference_input_ids": [], "reference_text": []}, features=rows.features)


def as_rows(parallel: Dataset, language: str, first: int) -> Dataset:
    """Pairs as rows without a response, and each distinct reference as a row that is its own reference.

    The latter keep the reference language where it was.

    Args:
        parallel: columns `text` (or `prompt`), `reference` or `<text>_<reference language>`, and `lang` if known.
        language: of the references.
        first: id of the first row.
    """
    pairs, _ = in_schema(parallel, language, "parallel_dataset", required=True, parallel=True)
    kept = ("prompt", "reference", "lang", "origin")
    pairs = pairs.remove_columns([name for name in pairs.column_names if name not in kept])
    met: dict[str, int] = {}
    for number, value in enumerate(pairs["reference"]):
        if value is not None:  # a pair in the reference language is its own reference
            met.setdefault(str(value), number)
    own = pairs.select(sorted(met.values()))
    own = own.remove_columns(["prompt", "lang"]).add_column("prompt", own["reference"])
    own = own.add_column("lang", [language] * len(own)).cast(pairs.features)
    both = concatenate_datasets([pairs, own])
    return both.add_column("row", list(range(first, first + len(both))))
