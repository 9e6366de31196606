"""The batches of a run: which rows are in which, decided by seed and epoch alone.

A run has one table of rows: the answered rows, then the parallel rows. In a batch each answered row is followed by its
parallel rows. Parallel rows alone may come first (`align_first`), as the beginning of the first epoch. Without
answered rows (a language pack) an epoch is a round of the mixture of languages.

transformers draws the order of `group_by_length` from torch's global generator, which dropout, data workers and
evaluation also draw from, so a resumed epoch would repeat some rows and miss others. With several processes,
accelerate's `skip_first_batches` hides the sampler from `set_epoch`, so a resumed epoch would be shuffled like the
first. So the trainer sets the epoch itself, and evaluation restores the generators (`undisturbed`).

accelerate also completes an epoch's last batches with rows from its beginning, so that every process has as many.
Those rows would be trained on twice, and a run would depend on the number of its processes. So a schedule makes the
batches of each process. If no row is left for a process, it gets a filler row with zero loss, because it has to take
part in the collectives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from cctuning.model.packing import best_fit
from cctuning.training.parallel import Mixture

Round = list[list[int]]  # a batch for each process; an empty one is a filler


class Schedule(BatchRebalanceSampler):
    """Batches of this process, as numbers of rows in the run's table.

    transformers and accelerate leave the batches of a `BatchRebalanceSampler` as they are.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        *,
        strategy: str = "random",
        capacity: int = 0,
        mixture: Mixture | None = None,
        answered: int = 0,
        beside: int = 0,
        first: int = 0,
        dp_size: int = 1,
        grad_accum: int = 1,
        **options: Any,
    ) -> None:
        """
        Args:
            lengths: tokens of each row of the table.
            batch: answered rows of a batch; with `capacity`, bins of so many tokens that whole rows fill, best-fit
                decreasing.
            strategy: `random`, `group_by_length` or `sequential`; not with `capacity`.
            mixture: of the parallel rows. answered: number of answered rows, all if there is no mixture; with 0, an
                epoch is a round of the mixture.
            beside: parallel rows with each answered row.
            first: optimizer steps on parallel rows alone.
            options: `rank`, `seed` and `drop_last` of the parent.
        """
        options |= {"dp_size": dp_size, "grad_accum": grad_accum}
        super().__init__(list(lengths), batch * dp_size * grad_accum, **options)
        self.batch, self.strategy, self.capacity = batch, strategy, capacity
        self.mixture, self.answered = mixture, answered if mixture is not None else len(lengths)
        self.beside, self.first = beside if self.answered else 0, first
        self.alone, self._more = batch, 0  # parallel rows of a batch alone; tokens that come with an answered row
        if capacity and mixture is not None:
            pair = float(np.asarray(self.lengths)[self.answered + mixture.round(0)].mean())
            self.alone, self._more = max(1, int(batch * capacity / pair)), round(self.beside * pair)
        self._made: dict[int, list[Round]] = {}
        self._length = len(self._shuffled(0))

    def __len__(self) -> int:
        """Batches of an epoch, without those of `first`."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        for batches in self._rounds(self.epoch):
            yield self._with_parallel(self.epoch, batches[self.rank]) or [0]

    @property
    def fills(self) -> bool:
        """Whether this process's last batch is a filler."""
        return not all(batches[self.rank] for batches in self._rounds(self.epoch)[-1:])

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps, without those of `first`."""
        return max(1, math.ceil(self._length / self.grad_accum))

    def drawn(self, epochs: float) -> dict[str, int]:
        """Language -> about how many parallel rows are read in so many epochs and in the steps before them."""
        if self.mixture is None:
            return {}
        each = self.answered * self.beside if self.answered else len(self.mixture)
        return self.mixture.drawn(round(epochs * each) + self._alone_in_all)

    def rows_read(self, steps: int) -> Sequence[int]:
        """The rows of the table that the first `steps` optimizer steps read, in all processes; all, if most."""
        found: set[int] = set()
        epoch = 0
        while steps > 0:
            rounds = self._rounds(epoch)[: steps * self.grad_accum]
            for batches in rounds:
                found.update(row for batch in batches for row in self._with_parallel(epoch, batch))
                if 2 * len(found) > len(self.lengths):
                    return range(len(self.lengths))
            steps -= max(1, math.ceil(len(rounds) / self.grad_accum))
            epoch += 1
        return sorted(found)

    def _rounds(self, epoch: int) -> list[Round]:
        """The batches of an epoch and of all processes, without the parallel rows beside answered ones."""
        if epoch not in self._made:
            self._made = {epoch: self._shuffled(epoch)}
            if epoch == 0 and self.mixture is not None:
                rows = [self.answered + row for row in self.mixture.rows(0, self._alone_in_all)]
                self._made[epoch] = _parts(_parts(rows, self.alone), self.dp_size) + self._made[epoch]
        return self._made[epoch]

    @property
    def _alone_in_all(self) -> int:
        return self.first * self.grad_accum * self.dp_size * self.alone

    def _with_parallel(self, epoch: int, rows: list[int]) -> list[int]:
        if self.mixture is None or not self.beside:
            return rows
        found = []
        for row in rows:
            found.append(row)
            if row < self.answered:
                place = self._alone_in_all + (epoch * self.answered + row) * self.beside
                found += [self.answered + other for other in self.mixture.rows(place, self.beside)]
        return found

    def _shuffled(self, epoch: int) -> list[Round]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        rows = list(range(self.answered))
        if not rows and self.mixture is not None:  # packed rounds differ in their number of bins
            rows = self.mixture.round(0 if self.capacity else epoch).tolist()
        lengths = [self.lengths[row] + self._more for row in rows]
        if self.strategy == "group_by_length" and not self.capacity:
            order = get_length_grouped_indices(lengths, self.effective_batch_size, generator=generator)
        elif self.strategy == "sequential":
            order = list(range(len(rows)))
        else:
            order = torch.randperm(len(rows), generator=generator).tolist()
        if self.capacity:
            return self._packed([rows[place] for place in order], [lengths[place] for place in order], generator)
        batches = _parts([rows[place] for place in order], self.batch)
        if self.drop_last:
            whole = [batch for batch in batches if len(batch) == self.batch]
            batches = whole[: len(whole) // self.dp_size * self.dp_size]
        return [one + [[]] * (self.dp_size - len(one)) for one in _parts(batches, self.dp_size)]

    def _packed(self, rows: list[int], lengths: list[int], generator: torch.Generator) -> list[Round]:
        packed = best_fit(lengths, self.capacity)
        bins = [[rows[place] for place in packed[one]] for one in torch.randperm(len(packed), generator=generator)]
        rounds, step = [], self.effective_batch_size
        for dealt in _parts(bins, step):
            if self.drop_last and len(dealt) < step:
                break
            slots = math.ceil(len(dealt) * self.grad_accum / step)
            batches = [
                [row for one in dealt[number :: slots * self.dp_size] for row in one]
                for number in range(slots * self.dp_size)
            ]
            rounds += _parts(batches, self.dp_size)
        return rounds


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the global generators (Python's, NumPy's, torch's) on exit."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
