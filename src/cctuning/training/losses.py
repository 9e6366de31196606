"""The losses that are logged: the parts of the objective, and the evaluation loss of each language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from cctuning.model.connected import ConnectedModel
from cctuning.model.objective import ConnectedOutput

PARTS = ("student_loss", "fused_loss", "align_loss", "identity_loss", "distill_loss", "decision")


def watch_decisions(connected: ConnectedModel) -> dict[int, Tensor]:
    """Layer -> mean decision of its latest forward, kept up to date by a hook on each layer's decision.

    The values are detached scalars, NaN where no row was connected. Empty for connections without a decision.
    """
    means: dict[int, Tensor] = {}

    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
            means[layer] = output.detach().float().expand_as(args[1]).mean()

        return keep

    for layer, decision in connected.decisions.items():
        decision.register_forward_hook(keeper(layer))
    return means


def batch_metrics(
    outputs: ConnectedOutput, gather: Callable[[Tensor], Tensor], filler: bool, decisions: Mapping[int, Tensor]
) -> dict[str, float]:
    """Metrics of a batch by name, over all processes. A collective.

    Metrics that no process has are left out.

    Args:
        gather: gathers a tensor from all processes.
        filler: this process has no rows left and its batch does not count.
        decisions: of `watch_decisions`.
    """
    found: dict[str, float] = {}
    assert outputs.correct is not None and outputs.scored is not None and outputs.loss is not None
    correct, scored = gather(outputs.correct).sum(), gather(outputs.scored).sum()
    if scored > 0:
        found["mean_token_accuracy"] = (correct / scored).item()
    for name in PARTS:
        value = None if filler else getattr(outputs, name)
        # A process whose batch has no such part takes part in the collective with NaN, which the mean leaves out.
        mean = gather((value if value is not None else outputs.loss.detach() * torch.nan).float()).nanmean()
        if not torch.isnan(mean):
            found[name] = mean.item()
    if decisions:
        means = gather(torch.stack(list(decisions.values()))[None]).nanmean(dim=0)
        for layer, mean in zip(decisions, means.tolist(), strict=True):
            if mean == mean:  # NaN: no process connected a row
                found[f"decision_layer_{layer:02d}"] = mean
    return found


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
