"""The order in which a run takes its rows: each row once an epoch, in an order that seed and epoch alone decide.

transformers draws the order of `group_by_length` from torch's global generator, which dropout, data workers and each
evaluation also draw from; so a resumed epoch took some rows twice and others never. And under several processes
accelerate's `skip_first_batches` hides the sampler from `set_epoch`: a resumed epoch was shuffled as the first one is.
Here the trainer tells the sampler its epoch itself (`begin`), and an evaluation gives the generators back as it found
them (`undisturbed`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices


class EpochOrder(Sampler[int]):
    """All rows of an epoch: at random, grouped by length, or as they stand."""

    def __init__(self, lengths: Sequence[int], strategy: str, group: int, seed: int) -> None:
        """
        Args:
            lengths: tokens of each row.
            strategy: `random`, `group_by_length` or `sequential`.
            group: rows of like length that stand together, for `group_by_length`.
            seed: of the order.
        """
        self.lengths, self.strategy, self.group, self.seed = list(lengths), strategy, group, seed
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        """Take the order of `epoch` from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.strategy == "group_by_length":
            return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
        if self.strategy == "sequential":
            return iter(range(len(self.lengths)))
        return iter(torch.randperm(len(self.lengths), generator=generator).tolist())


class BalancedOrder(BatchRebalanceSampler):
    """transformers' `batch_rebalance`, with no row twice.

    The parent fills the epoch's last step up to a row for each process and accumulated batch by repeating rows. Here
    that step has fewer batches; where it has fewer rows than there are processes, the others get one row as a filler.
    """

    def begin(self, epoch: int) -> None:
        """Take the order of `epoch` from the next iteration on."""
        self.set_epoch(epoch)

    @property
    def _last_slots(self) -> int:
        """Batches a process in the epoch's last, incomplete step; 0 where there is none."""
        return min(self.grad_accum, max(1, self.remainder // self.dp_size)) if self.has_tail else 0

    @property
    def fills(self) -> bool:
        """Whether this process's last batch is a filler."""
        return self.has_tail and self.rank >= self.remainder

    def __len__(self) -> int:
        return self.num_full_batches * self.grad_accum + self._last_slots

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        whole = self.num_full_batches * self.effective_batch_size
        for start in range(0, whole, self.effective_batch_size):
            yield from self._yield_global_batch(order[start : start + self.effective_batch_size])
        if not self.has_tail:
            return
        last = order[whole:]
        if len(last) < self.dp_size:
            yield [last[self.rank if self.rank < len(last) else 0]]
            return
        slots, self.grad_accum = self.grad_accum, self._last_slots
        try:
            yield from self._yield_global_batch(last)
        finally:
            self.grad_accum = slots


def order_of(rows: Any, args: Any) -> EpochOrder | BalancedOrder:
    """The order in which a run of the training options `args` takes the encoded `rows`."""
    lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()
    seed = args.seed if args.data_seed is None else args.data_seed
    parts, processes = args.gradient_accumulation_steps, max(1, args.world_size)
    step = args.train_batch_size * parts * processes  # rows: of all processes, so that their number changes no order
    if args.train_sampling_strategy != "batch_rebalance":
        return EpochOrder(lengths, args.train_sampling_strategy, step, seed)
    return BalancedOrder(
        lengths,
        effective_batch_size=step,
        dp_size=processes,
        grad_accum=parts,
        seed=seed,
        rank=args.process_index,
        drop_last=args.dataloader_drop_last,
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within: what is drawn from the global generators (Python's, NumPy's, torch's) leaves them as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
