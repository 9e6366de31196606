"""Measure, before training, whether a connection has something to transfer from the reference language.

Three conditions, all measured on the untrained model with rows of the kind it would be trained on (docs/lab/ shows
what happens without each):

1. a gap: the model answers the same questions better in the reference language;
2. predictable activations: those of the reference prompt can be predicted linearly from those of the prompt, on
   held-out rows. Prompts and reference prompts that repeat are used once;
3. a benefit: answers improve when the reference prompt is available, before any training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cctuning.analysis.observe import LanguageBatch, languages_of
from cctuning.analysis.similarity import prompt_activations
from cctuning.connection import ConnectionConfig, predicting, prompt_ends
from cctuning.model.connected import ConnectedModel

SHARES = (0.1, 0.25, 0.5)  # fixed shares of the reference at the end of the prompt, in every layer
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean eigenvalue of the Gram matrix
FOLDS = 4


@dataclass(frozen=True)
class Prediction:
    """How well the activations of reference prompts are predicted from those of prompts, in one layer.

    Attributes:
        explained: share of the held-out variance that the best ridge regression explains, at most 1.
        found: share of predictions whose nearest reference prompt, among all `rows`, is the right one.
    """

    explained: float
    found: float
    rows: int


@dataclass(frozen=True)
class Diagnosis:
    """Measurements for one language.

    Attributes:
        own: mean negative log-likelihood of a response given its prompt, in nats per response; NaN without responses.
        reference: the same for the same questions and answers in the reference language; NaN without such rows. The
            content is the same, so nats per response compare although the tokens differ.
        live: `own` over an untrained live connection, with the best of `SHARES`.
        share: the best of `SHARES`; 0 if none helps.
        layers: layer to prediction, over rows whose prompt and reference prompt do not repeat.
    """

    language: str
    rows: int
    own: float
    reference: float
    live: float
    share: float
    layers: dict[int, Prediction]


def predict_reference(own: Tensor, reference: Tensor) -> Prediction:
    """Ridge regression from `own` to `reference` (N, d), each fold predicted from the others, in the dual form N x N.

    Rows must not repeat, see `distinct_rows`.

    Raises:
        ValueError: fewer rows than 2 * FOLDS.
    """
    rows = len(own)
    if rows < 2 * FOLDS:
        raise ValueError(f"own: {rows} rows, expected at least {2 * FOLDS}")
    x, y = own.double(), reference.double()
    fold = torch.arange(rows) % FOLDS
    predicted = {ridge: torch.empty_like(y) for ridge in RIDGES}
    centre = torch.empty_like(y)
    for one in range(FOLDS):
        seen, held = fold != one, fold == one
        middle_x, middle_y = x[seen].mean(dim=0), y[seen].mean(dim=0)
        a, b = x[seen] - middle_x, x[held] - middle_x
        gram = a @ a.T
        size = gram.diagonal().mean()
        for ridge in RIDGES:
            weights = torch.linalg.solve(gram + ridge * size * torch.eye(len(a), dtype=gram.dtype), y[seen] - middle_y)
            predicted[ridge][held] = b @ a.T @ weights + middle_y
        centre[held] = middle_y
    variance = (y - centre).square().sum().clamp(min=1e-30)
    errors = {ridge: float((y - guess).square().sum() / variance) for ridge, guess in predicted.items()}
    best = min(errors, key=lambda ridge: errors[ridge])
    nearest = torch.cdist(predicted[best], y).argmin(dim=1)
    return Prediction(1 - errors[best], float((nearest == torch.arange(rows)).double().mean()), rows)


def diagnose(
    model: Any, batches: Sequence[LanguageBatch], own_language: Mapping[str, float] | None = None
) -> Iterator[Diagnosis]:
    """Measure one language after the other.

    Args:
        model: a causal LM in eval mode; it is left unchanged.
        batches: from `language_batches`.
        own_language: language to `Diagnosis.reference`, from `reference_losses`.
    """
    bar = tqdm(total=len(batches) * (2 + len(SHARES)), desc="Measuring", unit="batch")
    for language in languages_of(batches):
        mine = [batch for batch in batches if batch.language == language]
        with_plain = ConnectedModel.attach(model, ConnectionConfig(connection="none")).eval()
        parts = [prompt_activations(with_plain, batch) for batch in _counted(mine, bar)]
        own = torch.cat([row_losses(with_plain, batch, live=False) for batch in _counted(mine, bar)])
        with_plain.unload()
        x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        new = distinct_rows(mine)
        best, share = float(own.nanmean()), 0.0
        for value in SHARES:
            loss = _live(model, _counted(mine, bar), value)
            if loss < best:
                best, share = loss, value
        layers = {}
        if len(new) >= 2 * FOLDS:
            layers = {layer: predict_reference(x[new, layer], y[new, layer]) for layer in range(x.shape[1])}
        reference = (own_language or {}).get(language, float("nan"))
        yield Diagnosis(language, len(x), float(own.nanmean()), reference, best, share, layers)
    bar.close()


def _counted(batches: Iterable[LanguageBatch], bar: Any) -> Iterator[LanguageBatch]:
    for batch in batches:
        yield batch
        bar.update()


def distinct_rows(batches: Sequence[LanguageBatch]) -> list[int]:
    """Positions of the rows whose prompt and reference prompt have not occurred before.

    A row that occurs in two folds would make any two languages predictable from each other.
    """
    prompts, references, new = set[tuple[int, ...]](), set[tuple[int, ...]](), list[int]()
    place = 0
    for batch in batches:
        rows = batch.build()
        assert (
            rows.labels is not None
            and rows.reference_input_ids is not None
            and rows.reference_attention_mask is not None
        )
        ends = prompt_ends(rows.attention_mask, predicting(rows.labels)).tolist()
        sizes = rows.reference_attention_mask.sum(dim=1).tolist()
        parallels = [tuple(ids[:size]) for ids, size in zip(rows.reference_input_ids.tolist(), sizes, strict=True)]
        for ids, end, index in zip(rows.input_ids.tolist(), ends, rows.reference_index.tolist(), strict=True):
            prompt, reference = tuple(ids[: end + 1]), parallels[index]
            if prompt not in prompts and reference not in references:
                new.append(place)
            prompts.add(prompt)
            references.add(reference)
            place += 1
    return new


def reference_losses(model: Any, batches: Mapping[str, Sequence[LanguageBatch]]) -> dict[str, float]:
    """Mean nats per response of each language's rows, which hold the same questions in the reference language."""
    plain = ConnectedModel.attach(model, ConnectionConfig(connection="none")).eval()
    bar = tqdm(total=sum(map(len, batches.values())), desc="Measuring the reference language", unit="batch")
    try:
        return {
            language: float(
                torch.cat([row_losses(plain, batch, live=False) for batch in _counted(own, bar)]).nanmean()
            )
            for language, own in batches.items()
        }
    finally:
        bar.close()
        plain.unload()


def _live(model: Any, batches: Iterable[LanguageBatch], share: float) -> float:
    fixed = ConnectionConfig(
        connection="gated", decision="fixed", decision_value=share, transform="none", paths="student"
    )
    connected = ConnectedModel.attach(model, fixed).eval()
    try:
        return float(torch.cat([row_losses(connected, batch, live=True) for batch in batches]).nanmean())
    finally:
        connected.unload()


@torch.no_grad()
def row_losses(connected: ConnectedModel, batch: LanguageBatch, live: bool) -> Tensor:
    """(B,) negative log-likelihood of each row's response, in nats; NaN without a response.

    Args:
        live: use the live connection.
    """
    rows = batch.build(connected.model.device)
    assert rows.labels is not None
    ends = prompt_ends(rows.attention_mask, predicting(rows.labels))
    names = ("reference_input_ids", "reference_attention_mask", "reference_index") if live else ()
    references = {name: getattr(rows, name) for name in names}
    logits = connected(rows.input_ids, rows.attention_mask, prompt_lengths=ends + 1, **references).logits
    assert logits is not None
    wanted = rows.labels[:, 1:]
    scored = wanted != -100
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), wanted.masked_fill(~scored, 0), reduction="none"
    )
    total = (losses * scored).sum(dim=1)
    return torch.where(scored.any(dim=1), total, total.new_full((), torch.nan)).cpu()
