"""The order in which a run takes its rows: each row once per epoch, in an order that only seed and epoch decide.

transformers draws the order of `group_by_length` from torch's global generator, which dropout, data workers and
evaluation also draw from, so a resumed epoch would repeat some rows and miss others. With several processes,
accelerate's `skip_first_batches` hides the sampler from `set_epoch`, so a resumed epoch would be shuffled like the
first. Here the trainer sets the sampler's epoch itself (`begin`), and evaluation restores the generators
(`undisturbed`).

accelerate also completes an epoch's last batches with rows from its beginning, so that every process has as many.
Those rows would be trained on twice, and a run would depend on the number of its processes. So each order here makes
only the batches of its process. If no row is left for a process, it gets a filler row with zero loss, because it has
to take part in the collectives.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from cctuning.model.packing import best_fit
from cctuning.training.tokenizing import TokenizingTrainer

FILLER = "filler"  # key of a batch whose loss does not count


class EpochOrder(BatchRebalanceSampler):
    """Batches of this process: the rows of an epoch shuffled, grouped by length, or in their order.

    transformers and accelerate leave the batches of a `BatchRebalanceSampler` as they are.
    """

    def __init__(self, lengths: Sequence[int], batch: int, strategy: str = "random", **options: Any) -> None:
        """
        Args:
            lengths: tokens of each row.
            batch: rows of a batch (bins of a packed one).
            strategy: `random`, `group_by_length` or `sequential`.
            options: `dp_size`, `grad_accum`, `rank`, `seed` and `drop_last` of the parent.
        """
        super().__init__(list(lengths), batch * options["dp_size"] * options["grad_accum"], **options)
        self.batch, self.strategy = batch, strategy
        self._made: dict[int, list[list[int]]] = {}  # epoch -> batches

    def begin(self, epoch: int) -> None:
        """Use the order of `epoch` from the next iteration on."""
        self.set_epoch(epoch)

    @property
    def fills(self) -> bool:
        """Whether this process's last batch is a filler."""
        return not all(self._batches()[-1:])

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        return (rows or [0] for rows in self._batches())

    def _batches(self) -> list[list[int]]:
        """The batches of the epoch; an empty one is a filler."""
        if self.epoch not in self._made:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            self._made = {self.epoch: list(self._make(generator))}
        return self._made[self.epoch]

    def _make(self, generator: torch.Generator) -> Iterator[list[int]]:
        order = list(range(len(self.lengths)))
        if self.strategy == "group_by_length":
            order = get_length_grouped_indices(self.lengths, self.effective_batch_size, generator=generator)
        elif self.strategy != "sequential":
            order = torch.randperm(len(order), generator=generator).tolist()
        together = self.batch * self.dp_size
        for start in range(0, len(order) - (together - 1 if self.drop_last else 0), together):
            yield order[start : start + together][self.rank * self.batch :][: self.batch]


class PackedOrder(EpochOrder):
    """Batches of bins that are filled with whole rows, best-fit decreasing; each row once.

    Each epoch fills the bins anew. Their number is the same in all epochs, for it depends on the lengths alone.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, bins: int, **options: Any) -> None:
        """
        Args:
            lengths: tokens that each row takes. capacity: tokens of a bin. bins: of a batch.
            options: as of `EpochOrder`.
        """
        super().__init__(lengths, bins, **options)
        self.capacity = capacity

    def _make(self, generator: torch.Generator) -> Iterator[list[int]]:
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        packed = best_fit([self.lengths[row] for row in rows], self.capacity)
        bins = [[rows[place] for place in packed[one]] for one in torch.randperm(len(packed), generator=generator)]
        step = self.effective_batch_size
        for start in range(0, len(bins) - (step - 1 if self.drop_last else 0), step):
            dealt = bins[start : start + step]
            slots = math.ceil(len(dealt) * self.grad_accum / step)
            for slot in range(slots):
                yield [row for one in dealt[slot * self.dp_size + self.rank :: slots * self.dp_size] for row in one]


def order_of(rows: Any, args: Any, beside: int = 0) -> EpochOrder:
    """The order of the encoded `rows` in a run with the training options `args`.

    Args:
        beside: tokens of parallel text that come with each row, on average.
    """
    lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()
    options = {
        "dp_size": max(1, args.world_size),
        "grad_accum": args.gradient_accumulation_steps,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "rank": args.process_index,
        "drop_last": args.dataloader_drop_last,
    }
    if args.packing:
        return PackedOrder([length + beside for length in lengths], args.max_length, args.train_batch_size, **options)
    return EpochOrder(lengths, args.train_batch_size, args.train_sampling_strategy, **options)


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


class EvaluationLoss:
    """Loss per response token of the student pass in the current evaluation: over all rows, and in each language.

    Rows are kept by id, so that a row which accelerate gives to two processes counts once. transformers' `eval_loss`,
    a mean over batches, depends on how rows fall into batches; this one replaces it.
    """

    def __init__(self) -> None:
        self.languages: dict[int, str] = {}
        self.rows: dict[int, tuple[float, int]] = {}

    def start(self, dataset: Any) -> None:
        """Start an evaluation of `dataset`; only the output of `encode_dataset` has languages."""
        known = isinstance(dataset, Dataset) and {"row", "lang"} <= set(dataset.column_names)
        self.languages = dict(zip(dataset["row"], dataset["lang"], strict=True)) if known else {}
        self.rows = {}

    def add(self, inputs: Mapping[str, Tensor], row_loss: Tensor) -> None:
        """Add a batch; `row_loss` (B,) is the student's loss summed over each row's tokens."""
        tokens = (inputs["labels"][:, 1:] != -100).sum(dim=1)
        for row, loss, count in zip(inputs["row"].tolist(), row_loss.tolist(), tokens.tolist(), strict=True):
            self.rows[row] = (loss, count)

    def result(self, prefix: str) -> dict[str, float]:
        """`<prefix>_loss`, and `<prefix>_loss_<language>` if there are several languages. A collective."""
        rows = self.rows
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, rows)
            rows = {row: pair for part in parts for row, pair in part.items()}
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for row, (loss, count) in rows.items():
            if row in self.languages and count:
                own = sums[self.languages[row]]
                own[0] += loss
                own[1] += count
        if not sums:
            return {}
        loss, count = (sum(part) for part in zip(*sums.values(), strict=True))
        found = {f"{prefix}_loss": loss / count}
        if len(sums) > 1:
            found |= {f"{prefix}_loss_{language}": own / count for language, (own, count) in sorted(sums.items())}
        return found


class EpochTrainer(TokenizingTrainer):
    """A `TokenizingTrainer` whose order of rows depends on nothing but seed and epoch, with losses by language."""

    _order: EpochOrder | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._eval_losses = EvaluationLoss()
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder:
        rows = self.train_dataset if train_dataset is None else train_dataset
        self._order = order_of(rows, self.args, self._tokens_beside())
        return self._order

    def _tokens_beside(self) -> int:
        """Tokens of parallel text in a batch for each row of the epoch, on average."""
        return 0

    def get_train_dataloader(self) -> Any:
        """As the parent's, with a generator for the workers' seeds that dropout does not draw from."""
        loader: Any = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        # accelerate's set_epoch does not reach the sampler where batches are skipped.
        if self._order is not None:
            self._order.begin(epoch)
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As the parent's; the epoch's last batch does not count if it is a filler."""
        if self._order is not None and self._order.fills:
            epoch_iterator = self._with_filler(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _with_filler(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            last = self.accelerator.gradient_state.end_of_dataloader
            yield batch | {FILLER: True, "labels": torch.full_like(batch["labels"], -100)} if last else batch

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the parent's, with the loss of each language. Training continues as if there had been no evaluation."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self._eval_losses.start(self.eval_dataset[rows] if isinstance(rows, str) else rows)  # type: ignore[index]
        with undisturbed():
            return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, with the loss of each language among the metrics."""
        output = super().evaluation_loop(*args, **kwargs)
        assert output.metrics is not None
        output.metrics.update(self._eval_losses.result(kwargs.get("metric_key_prefix", "eval")))
        return output
