"""Epochs: every row once, in an order that only seed and epoch decide, and evaluation losses by language."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from cctuning.training.losses import EvaluationLoss
from cctuning.training.sampling import (
    BalancedOrder,
    EpochOrder,
    PackedOrder,
    fillers_at_the_end,
    order_of,
    undisturbed,
    without_repeats,
)
from cctuning.training.tokenizing import TokenizingTrainer


class EpochTrainer(TokenizingTrainer):
    """A `TokenizingTrainer` whose order of rows depends on nothing but seed and epoch."""

    _order: EpochOrder | BalancedOrder | PackedOrder | None = None
    _rows_each = 1  # rows of a batch for each row of the epoch
    _all_rows_count = False  # no row of a batch is a repetition

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._eval_losses = EvaluationLoss()
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder | BalancedOrder | PackedOrder:
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
        assert self._order is not None
        self._order.begin(epoch)
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As the parent's, without the rows that accelerate repeats to complete an epoch's last batches."""
        if self._all_rows_count:
            pass
        elif isinstance(self._order, BalancedOrder | PackedOrder):
            epoch_iterator = fillers_at_the_end(epoch_iterator, self.accelerator, self._order.fills)
        elif not self.args.dataloader_drop_last:
            rows: Any = self.train_dataset
            epoch_iterator = without_repeats(epoch_iterator, self.accelerator, len(rows), self._rows_each)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

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
