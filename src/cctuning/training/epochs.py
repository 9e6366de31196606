"""An SFTTrainer that takes each row once an epoch, whatever comes between, and shows the loss of each language."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer

from cctuning.training.sampling import BalancedOrder, EpochOrder, order_of, undisturbed
from cctuning.training.watching import LanguageLoss


class EpochTrainer(SFTTrainer):
    """The parts of `CCTrainer` that decide which rows come when; see sampling.py and watching.py."""

    _order: EpochOrder | BalancedOrder | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._by_language = LanguageLoss()
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder | BalancedOrder:
        """An order that seed and epoch alone decide, so that a run which is resumed takes each row once."""
        self._order = order_of(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return self._order

    def get_train_dataloader(self) -> Any:
        """As the parent's; its workers' seeds are not drawn from the generator that dropout draws from."""
        loader: Any = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; tells the sampler the epoch, as accelerate does not reach it where batches are skipped."""
        assert self._order is not None
        self._order.begin(epoch)
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the parent's, with the loss of each language; training goes on as if there had been none."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self._by_language.start(self.eval_dataset[rows] if isinstance(rows, str) else rows)  # type: ignore[index]
        with undisturbed():
            return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; the languages' losses are logged with the others."""
        output = super().evaluation_loop(*args, **kwargs)
        assert output.metrics is not None
        output.metrics.update(self._by_language.result(kwargs.get("metric_key_prefix", "eval")))
        return output
