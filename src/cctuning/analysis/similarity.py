"""Similarity of the activations of prompts and their reference prompts, layer by layer.

Either measure alone misleads. The cosine of a pair is high wherever all activations share a direction, so it is shown
beside that of unrelated pairs. CKA compares the geometry of two languages, but its usual estimate tends to 1 if there
are fewer prompts than dimensions, so the unbiased estimate is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.analysis.observe import LanguageBatch, languages_of
from cctuning.connection import last_real, predicting, prompt_ends
from cctuning.model.connected import ConnectedModel
from cctuning.model.sites import find_sites


@dataclass(frozen=True)
class Similarity:
    """Similarity of each language's activations to those of the reference prompts, at the last token of the prompt.

    Attributes:
        layers: L numbers. languages: G codes. rows: (G,) pairs.
        cosine: (G, L) mean cosine of a prompt and its own reference prompt.
        unrelated: (G, L) mean cosine of a prompt and another one's reference prompt; NaN with fewer than two pairs.
        cka: (G, L) unbiased linear CKA; NaN with fewer than four pairs.
    """

    layers: list[int]
    languages: list[str]
    rows: Tensor
    cosine: Tensor
    unrelated: Tensor
    cka: Tensor

    def of(self, languages: Sequence[str]) -> Similarity:
        """The same for these languages, in this order."""
        places = [self.languages.index(code) for code in languages]
        figures = (one[places] for one in (self.rows, self.cosine, self.unrelated, self.cka))
        return Similarity(self.layers, list(languages), *figures)


def cosine(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cosine of the pairs (x_i, y_i), and of the pairs (x_i, y_j) with i != j (NaN with fewer than two).

    Args:
        x, y: (n, d), paired by row.
    """
    x, y = (one.double() / one.double().norm(dim=1, keepdim=True).clamp(min=1e-30) for one in (x, y))
    own = (x * y).sum()
    pairs, count = x.sum(dim=0) @ y.sum(dim=0), len(x)
    return float(own / count), float((pairs - own) / (count * (count - 1))) if count > 1 else float("nan")


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """Linear centred kernel alignment of two sets of activations: 1 for equal up to rotation and scale.

    Args:
        x, y: (n, d) and (n, e), activations of the same inputs by row.
        unbiased: use the unbiased HSIC of Song et al. (2012): near 0 for unrelated activations at any n, possibly
            below; NaN with fewer than four rows. False: as published, between 0 and 1, and near 1 for any activations
            if n is small compared with d.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019; the estimator as in
    Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, ICLR 2021.
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y {len(y)}: give activations of the same inputs, in the same order")
    # Centring first changes neither estimate and avoids a loss of precision from a common offset.
    grams = [one @ one.T for one in ((side - side.mean(dim=0)) for side in (x.double(), y.double()))]
    hsic = _unbiased_hsic if unbiased else lambda k, m: float((k * m).sum())
    if unbiased and len(x) < 4:
        return float("nan")
    scale = hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])
    return hsic(grams[0], grams[1]) / scale**0.5 if scale > 0 else float("nan")


def _unbiased_hsic(k: Tensor, m: Tensor) -> float:
    n = len(k)
    k, m = (one - one.diag().diag() for one in (k, m))
    trace = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(dim=0) @ m.sum(dim=0))
    return float(trace / (n * (n - 3)))


@contextmanager
def _capturing(connected: ConnectedModel, last: Tensor, positions: int) -> Iterator[dict[int, Tensor]]:
    """Within this context, the output of each FFN at position `last` (N,) of each row, in fp32 on the CPU.

    Hooks run in the order of registration, so these see the output after the connection.
    """
    kept: dict[int, Tensor] = {}
    rows = torch.arange(len(last), device=last.device)

    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept[layer] = hidden.reshape(len(rows), positions, -1)[rows, last].float().cpu()

        return keep

    handles = [site.block.register_forward_hook(keeper(site.index)) for site in find_sites(connected.model)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prompt_activations(connected: ConnectedModel, batch: LanguageBatch) -> tuple[Tensor, Tensor]:
    """Activations of prompts and their reference prompts at their last tokens, layer by layer.

    Both run as at inference: in the student pass, through the transform, without a reference. An adaptive connection
    adds to prompts only.

    Args:
        connected: in eval mode; a plain model is attached with `ConnectionConfig(connection="none")`.

    Returns:
        (N, L, d) each, fp32, on the CPU, paired by row.
    """
    rows = batch.build(connected.model.device)
    assert (
        rows.labels is not None and rows.reference_input_ids is not None and rows.reference_attention_mask is not None
    )
    ends = prompt_ends(rows.attention_mask, predicting(rows.labels))
    width = int(ends.max()) + 1
    prompts = rows.attention_mask[:, :width] * (torch.arange(width, device=ends.device) <= ends[:, None])
    own = _run(connected, rows.input_ids[:, :width], prompts, connect=True)
    theirs = _run(connected, rows.reference_input_ids, rows.reference_attention_mask, connect=False)
    return own, theirs[rows.reference_index.cpu()]


def _run(connected: ConnectedModel, ids: Tensor, mask: Tensor, connect: bool) -> Tensor:
    who = torch.full((len(ids),), connect, device=ids.device)
    with _capturing(connected, last_real(mask.bool()), ids.shape[1]) as kept:
        connected.student_pass(ids, mask, who)
    return torch.stack([kept[layer] for layer in sorted(kept)], dim=1)


def language_similarity(connected: ConnectedModel, batches: Sequence[LanguageBatch]) -> Similarity:
    """Cosine and CKA between each language and the reference language, by layer.

    Memory is 2 x N x L x d floats for the N prompts of a language.

    Args:
        connected: as in `prompt_activations`.
    """
    languages = languages_of(batches)
    found: list[list[tuple[float, float, float]]] = []
    counts = []
    for language in languages:
        own, theirs = gather(connected, (batch for batch in batches if batch.language == language))
        counts.append(len(own))
        found.append([(*cosine(x, y), linear_cka(x, y)) for x, y in zip(own.unbind(1), theirs.unbind(1), strict=True)])
    cosines, unrelated, cka = torch.tensor(found).permute(2, 0, 1)
    return Similarity(list(range(cka.shape[1])), languages, torch.tensor(counts), cosines, unrelated, cka)


def gather(connected: ConnectedModel, batches: Iterable[LanguageBatch]) -> tuple[Tensor, Tensor]:
    """`prompt_activations` of several batches, concatenated."""
    parts = [prompt_activations(connected, batch) for batch in batches]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@dataclass(frozen=True)
class Projection:
    """`points`: (n, 2) on the principal plane. `explained`: (2,) share of the variance of each axis."""

    points: Tensor
    explained: Tensor


def principal_plane(activations: Tensor) -> Projection:
    """The first two principal components of `activations` (n, d), n at least 2.

    The sign of each axis makes its largest coordinate positive, so that the plane is the same on every machine. Points
    that are close in the plane may be far apart in the other dimensions.
    """
    centred = activations.double() - activations.double().mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(centred), 2, dtype=torch.float64)
    points[:, : min(2, len(values))] = (left * values)[:, :2]
    points *= torch.where(points.gather(0, points.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    variance = torch.zeros(2, dtype=torch.float64)
    variance[: min(2, len(values))] = values.square()[:2]
    return Projection(points.float(), (variance / values.square().sum().clamp(min=1e-30)).float())
