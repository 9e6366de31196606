"""The order in which a run takes its rows: each row once per epoch, in an order that only seed and epoch decide.

transformers draws the order of `group_by_length` from torch's global generator, which dropout, data workers and
evaluation also draw from, so a resumed epoch would repeat some rows and miss others. With several processes,
accelerate's `skip_first_batches` hides the sampler from `set_epoch`, so a resumed epoch would be shuffled like the
first. Here the trainer sets the sampler's epoch itself (`begin`), and evaluation restores the generators
(`undisturbed`).

accelerate also completes an epoch's last batches with rows from its beginning, so that every process has as many.
Those rows would be trained on twice, and a run would depend on the number of its processes; `without_repeats` cuts
them off. A process that is left without a row keeps one as a filler with zero loss, because it has to take part in
the collectives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from cctuning.model.packing import best_fit

FILLER = "filler"  # key of a batch whose loss does not count
BY_ROW = ("input_ids", "attention_mask", "labels", "row", "text", "reference_index", "reference_row")
BY_REFERENCE = ("reference_input_ids", "reference_attention_mask", "reference_text")


class EpochOrder(Sampler[int]):
    """All rows of an epoch: shuffled, grouped by length, or in their order."""

    def __init__(self, lengths: Sequence[int], strategy: str, group: int, seed: int) -> None:
        """
        Args:
            lengths: tokens of each row.
            strategy: `random`, `group_by_length` or `sequential`.
            group: rows in a group of similar length, for `group_by_length`.
            seed: of the order.
        """
        self.lengths, self.strategy, self.group, self.seed = list(lengths), strategy, group, seed
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        """Use the order of `epoch` from the next iteration on."""
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
    """transformers' `batch_rebalance` without repeated rows.

    The parent completes the epoch's last step by repeating rows. Here that step has fewer batches; if it has fewer
    rows than there are processes, the other processes get one row as a filler.
    """

    def begin(self, epoch: int) -> None:
        """Use the order of `epoch` from the next iteration on."""
        self.set_epoch(epoch)

    @property
    def _last_slots(self) -> int:
        """Batches per process in the epoch's last, incomplete step; 0 if all are complete."""
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


class PackedOrder(BatchRebalanceSampler):
    """Batches of bins that are filled with whole rows, best-fit decreasing; each row once.

    Each epoch fills the bins anew. Their number is the same in all epochs, for it depends on the lengths alone.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, bins: int, **options: Any) -> None:
        """
        Args:
            lengths: tokens that each row takes. capacity: tokens of a bin. bins: of a batch.
            options: `dp_size`, `grad_accum`, `rank`, `seed` and `drop_last` of the parent.
        """
        super().__init__(list(lengths), bins * options["dp_size"] * options["grad_accum"], **options)
        self.capacity = capacity
        self.whole, self.tail = divmod(len(best_fit(self.lengths, capacity)), self.effective_batch_size)
        if self.drop_last:
            self.tail = 0
        # Batches a process in the last, incomplete step.
        self.last_slots = math.ceil(self.tail * self.grad_accum / self.effective_batch_size)

    def begin(self, epoch: int) -> None:
        """Take the order of `epoch` from the next iteration on."""
        self.set_epoch(epoch)

    @property
    def fills(self) -> bool:
        """Whether this process's last batch is a filler."""
        return self.tail > 0 and (self.last_slots - 1) * self.dp_size + self.rank >= self.tail

    def __len__(self) -> int:
        return self.whole * self.grad_accum + self.last_slots

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        packed = best_fit([self.lengths[row] for row in rows], self.capacity)
        bins = [[rows[place] for place in packed[one]] for one in torch.randperm(len(packed), generator=generator)]
        for step in range(self.whole + (self.tail > 0)):
            dealt = bins[step * self.effective_batch_size : (step + 1) * self.effective_batch_size]
            slots = self.grad_accum if step < self.whole else self.last_slots
            for slot in range(slots):
                mine = dealt[slot * self.dp_size + self.rank :: slots * self.dp_size]
                yield [row for rows in mine for row in rows] or dealt[0][:1]


def order_of(rows: Any, args: Any, beside: int = 0) -> EpochOrder | BalancedOrder | PackedOrder:
    """The order of the encoded `rows` in a run with the training options `args`.

    Args:
        beside: tokens of parallel text that come with each row, on average.
    """
    lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()
    seed = args.seed if args.data_seed is None else args.data_seed
    parts, processes = args.gradient_accumulation_steps, max(1, args.world_size)
    if args.packing:
        ways = {"dp_size": processes, "grad_accum": parts, "rank": args.process_index}
        ways |= {"seed": seed, "drop_last": args.dataloader_drop_last}
        return PackedOrder([length + beside for length in lengths], args.max_length, args.train_batch_size, **ways)
    step = args.train_batch_size * parts * processes  # rows of all processes: their number does not change the order
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
    """Restore the global generators (Python's, NumPy's, torch's) on exit."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def without_repeats(
    batches: Iterator[dict[str, Any]], accelerator: Accelerator, length: int, each: int = 1
) -> Iterator[dict[str, Any]]:
    """This process's batches of `PairedCollator`, the epoch's last without repeated rows.

    Args:
        length: rows of an epoch.
        each: rows of a batch for each row of the epoch: 1, or with parallel text the row and its pairs.
    """
    for batch in batches:
        yield cut(batch, each * own_rows(len(batch["input_ids"]) // each, accelerator, length))


def fillers_at_the_end(
    batches: Iterator[dict[str, Any]], accelerator: Accelerator, filler: bool
) -> Iterator[dict[str, Any]]:
    """The batches of a `BalancedOrder`; if `filler`, the last is one row that does not count."""
    for batch in batches:
        yield cut(batch, 0) if filler and accelerator.gradient_state.end_of_dataloader else batch


def own_rows(rows: int, accelerator: Accelerator, length: int) -> int:
    """How many of a batch's `rows` are not repeated. Process p gets the p-th batch of each round."""
    # Not accelerate's `remainder`, which is unknown in an epoch that was resumed.
    remainder = length % (rows * accelerator.num_processes)
    if accelerator.num_processes == 1 or not accelerator.gradient_state.end_of_dataloader or remainder == 0:
        return rows
    return min(max(remainder - accelerator.process_index * rows, 0), rows)


def cut(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """The first `rows` rows of `batch`; for 0, its first row as a filler."""
    if rows == len(batch["input_ids"]):
        return batch
    own = batch | {key: batch[key][: max(rows, 1)] for key in BY_ROW if key in batch}
    if "reference_index" in batch:
        references = int(own["reference_index"].max()) + 1  # numbered in the order in which rows use them
        own |= {key: value[:references] for key, value in batch.items() if key in BY_REFERENCE}
    if rows == 0:
        own |= {FILLER: True, "labels": torch.full_like(own["labels"], -100)}
    return own
