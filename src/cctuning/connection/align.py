"""Align pooled prompts at one layer: spans of prompts, recorded references and their statistics, and the layer's hook.

Of the activation of a pre-trained model 80 to 99.9 % of the squared norm is the same for every prompt: the template,
the position, a few outlier dimensions (docs/lab/real.md). So both sides are first put in units of the references' own
variation by dimension. Aligning the mean of a middle layer across languages: Liu and Niehues 2025, arXiv 2502.14830.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cctuning.connection import equations
from cctuning.connection.config import ConnectionConfig
from cctuning.connection.plan import LayerMemory, Offered, Wire, add_objective

FLOOR = 0.01  # smallest spread of a dimension, in units of the root mean square over dimensions
BLOCK = 1024  # references that statistics are taken from at once
RESIDENT = 1 << 30  # bytes up to which all recorded vectors are kept on the model's device


class StopForward(Exception):
    """Ends a forward after the last aligned layer."""


@dataclass(frozen=True)
class Spans:
    """The positions of each row that are averaged.

    Attributes:
        index: (B, W) int64 flat positions, W of the longest span; a shorter one repeats its first.
        weight: (B, W) fp32, 0 at repeated positions; each row sums to 1.
    """

    index: Tensor
    weight: Tensor

    def pool(self, hidden: Tensor) -> Tensor:
        """Means (B, d) of `hidden` (..., d) over the spans."""
        taken = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.index.flatten())
        return equations.pool(taken.view(*self.index.shape, -1), self.weight)


def spans(pool: str, starts: Tensor, ends: Tensor, last: Tensor, width: int) -> Spans:
    """The spans of B rows of `width` positions each.

    Args:
        pool: `mean`, `text_last` or `last`.
        starts, ends: (B,) first position of a prompt's own text and the one after its last.
        last: (B,) the prompt's last position, which may be the template's.

    The first position of a row is left out of a mean over several: it is an attention sink, whose norm would dominate
    (Xiao et al. 2023, arXiv 2309.17453).
    """
    if pool == "mean":
        first = torch.where(ends - starts > 1, starts.clamp(min=1), starts)
        count = (ends - first).clamp(min=1)
    else:
        first = last if pool == "last" else ends - 1
        count = torch.ones_like(first)
    offsets = torch.arange(int(count.max()), device=starts.device)
    inside = offsets < count[:, None]
    rows = torch.arange(len(starts), device=starts.device)
    return Spans((rows * width + first)[:, None] + offsets * inside, inside.float() / count[:, None])


@dataclass(frozen=True)
class Statistics:
    """Mean and spread (standard deviation, with a floor) of a layer's pooled references: (d,) fp32 each."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, *parts: Tensor) -> Statistics:
        """Mean and spread of references given in parts of (n, d), which need not fit into memory together.

        With a single reference the spread is undefined; the size of its values is used instead.
        """
        count = sum(len(part) for part in parts)
        mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / count
        square = torch.stack([(part.double() - mean).square().sum(dim=0) for part in parts]).sum(dim=0) / count
        variance = square if count > 1 else mean.square()
        floor = FLOOR * float(variance.mean().sqrt()) + 1e-12
        return cls(mean.float(), variance.sqrt().clamp(min=floor).float())

    def to(self, device: torch.device) -> Statistics:
        return Statistics(self.mean.to(device), self.spread.to(device))

    def z(self, vectors: Tensor) -> Tensor:
        """Pooled activations (N, d) in units of the references' variation."""
        return equations.standardize(vectors, self.mean, self.spread)


class RecordedReferences:
    """Vectors (R, L, d) fp32 of R references at L layers, with their statistics."""

    def __init__(self, vectors: Tensor, layers: Sequence[int], device: torch.device) -> None:
        """
        Args:
            vectors: (R, L, d), may be memory-mapped. layers: numbers of the layers. device: of the model.
        """
        self.layers, self.device, self.size = list(layers), device, len(vectors)
        self.statistics = {
            layer: Statistics.of(*vectors[:, n].split(BLOCK)).to(device) for n, layer in enumerate(layers)
        }
        self.resident = vectors.nbytes <= RESIDENT
        self.vectors = vectors.to(device) if self.resident else vectors

    def take(self, places: Tensor) -> dict[int, Tensor]:
        """Layer -> (N, d) vectors of the references `places` (N,), on the model's device."""
        found = self.vectors[places.to(self.vectors.device)].to(self.device)
        return {layer: found[:, n] for n, layer in enumerate(self.layers)}

    def offer(self, rows: Tensor, others: int, seed: int) -> tuple[Offered, Tensor]:
        """The references of a batch, and others to tell them from.

        Args:
            rows: (B,) reference of each row, -1 for none.
            others: at most this many, drawn from all. seed: of the draw, the same in all processes of a step.

        Returns:
            What they offer, and (B,) the place of each row's reference among them, -1 for none.
        """
        if self.size <= others and self.resident:
            return Offered({layer: (self.vectors[:, n], None) for n, layer in enumerate(self.layers)}), rows
        drawn = torch.randint(self.size, (others,), generator=torch.Generator().manual_seed(seed))
        own = rows[rows >= 0].cpu()
        places, inverse = torch.unique(torch.cat([own, drawn]), return_inverse=True)
        which = torch.full_like(rows, -1)
        which[rows >= 0] = inverse[: len(own)].to(rows.device)
        memory: dict[int, LayerMemory] = {layer: (part, None) for layer, part in self.take(places).items()}
        return Offered(memory, pool=inverse[len(own) :].unique().to(self.device)), which


def error(
    loss: str,
    pooled: Tensor,
    vectors: Tensor,
    which: Tensor,
    statistics: Statistics | None,
    temperature: float = 1.0,
    others: Tensor | None = None,
) -> Tensor:
    """The error (B,) of rows whose pooled activations are `pooled` (B, d).

    Args:
        loss: `contrastive`, `standardized` or `relative`.
        vectors: (R, d) distinct references. which: (B,) the reference of each row.
        statistics: of the layer; None for `relative`.
        others: (K,) the references that rows are compared with; None: all. The same for all rows, so that a row's
            error does not depend on the rows beside it.
    """
    if loss == "relative" or statistics is None:
        return equations.relative_error(pooled, vectors[which].float())
    z, references = statistics.z(pooled), statistics.z(vectors)
    if loss == "standardized":
        return equations.standardized_error(z, references[which])
    if others is None:
        others = torch.arange(len(vectors), device=vectors.device)
    units, same = normalize(references[others], dim=-1), which[:, None] == others
    return equations.contrastive_error(z, references[which], units, same, temperature)


class LayerAlignment:
    """Forward hook of a decoder layer (`align_at: residual`) or of its FFN block (`ffn`); it has no weights.

    In a pass of mode `record` it keeps the pooled activations of the references; in one of mode `align` it adds its
    error to the objective. `statistics`, of the references, are None until these have been recorded.
    """

    def __init__(
        self, config: ConnectionConfig, index: int, number: int, wire: Wire, stream: int | None = None
    ) -> None:
        """
        Args:
            index: number of the layer. number: how many layers are aligned. wire: shared by all of them.
            stream: the one that is aligned of a layer's output (streams, B, T, d), as in Gemma 3n; None: it has none.
        """
        self.config, self.index, self.number, self.wire, self.stream = config, index, number, wire, stream
        self.statistics: Statistics | None = None
        self._add_objective = torch.compiler.disable(add_objective)  # for the reason given in gated.py

    def hook(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Registered with kwargs."""
        plan = self.wire.plan
        if not self.wire.enabled or plan is None or plan.spans is None:
            return output
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        activation = hidden if self.stream is None else hidden[self.stream]
        plan.check(activation, self.index)
        pooled = plan.spans.pool(activation)
        if plan.mode == "record":
            plan.results.memory[self.index] = pooled, None
            return output
        config, offered, which = self.config, plan.offered, plan.connect_reference
        assert plan.row_weight is not None and which is not None
        vectors = offered.memory[self.index][0]
        missed = error(config.loss, pooled, vectors, which, self.statistics, config.align_temperature, offered.pool)
        plan.results.align_error[self.index] = missed.detach()
        term = equations.objective(missed, plan.row_weight, config.weight / self.number)
        changed = self._add_objective(hidden, term, plan, self.index)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
