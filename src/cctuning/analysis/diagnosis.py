"""Before anyone pays for training: does this model know more in the reference language, and can it be reached?

Three conditions decide whether the connection can help (docs/lab/ shows each fail):

1. a gap: the model answers the same questions better in the reference language;
2. a way across: the reference's activations follow from the prompt's own, on rows held out, so that a linear matrix
   has something to learn. Where languages share no concepts they do not, and nothing transfers;
3. something to buy: with the reference at hand the answers get better, before any training.

All three are measured on the untrained model, on rows of the kind it would be trained on; the way across on each
prompt and each reference once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cctuning.analysis.observe import LanguageBatch, languages_of
from cctuning.analysis.similarity import prompt_activations
from cctuning.connection import ConnectionConfig, predicting, prompt_ends
from cctuning.model.connected import ConnectedModel

SHARES = (0.1, 0.25, 0.5)  # of the reference, tried at the prompt's end in every layer
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean eigenvalue of the Gram matrix
FOLDS = 4


@dataclass(frozen=True)
class Follows:
    """How well the reference's activations follow from the prompt's own at one layer, held out (FOLDS-fold).

    Attributes:
        explained: share of the variance around the mean, of the best ridge; at most 1, 0 or less is nothing.
        found: how often the mapped activation is nearest to its own parallel among all `rows` of them.
    """

    explained: float
    found: float
    rows: int


@dataclass(frozen=True)
class Diagnosis:
    """What was measured for one language.

    Attributes:
        own: mean negative log-likelihood of a response given its prompt, nats a response; NaN without responses.
        reference: the same for the same questions asked and answered in the reference language; NaN where the rows
            hold none. Both say the same, so nats a response compare although the tokens differ.
        live: the smallest of `own` over `SHARES`, with the reference at hand and nothing trained.
        share: the share that gave it; 0 where none helps.
        layers: layer -> how its reference activations follow, over the rows whose prompt and reference are new.
    """

    language: str
    rows: int
    own: float
    reference: float
    live: float
    share: float
    layers: dict[int, Follows]


def follows(own: Tensor, reference: Tensor) -> Follows:
    """Ridge regression from `own` to `reference` (N, d), each fold predicted from the others; dual form, N x N.

    Rows that repeat one another are for the caller to leave out (`new_rows`).

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
    return Follows(1 - errors[best], float((nearest == torch.arange(rows)).double().mean()), rows)


def diagnose(
    model: Any, batches: Sequence[LanguageBatch], own_language: Mapping[str, float] | None = None
) -> Iterator[Diagnosis]:
    """Measure language by language.

    Args:
        model: a plain causal LM in eval mode; connected for the while and left as it was.
        batches: of `language_batches`.
        own_language: language -> `Diagnosis.reference`, from `reference_losses`.
    """
    for language in languages_of(batches):
        mine = [batch for batch in batches if batch.language == language]
        with_plain = ConnectedModel.attach(model, ConnectionConfig(connection="none")).eval()
        parts = [prompt_activations(with_plain, batch) for batch in mine]
        own = torch.cat([row_losses(with_plain, batch, live=False) for batch in mine])
        with_plain.unload()
        x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        new = new_rows(mine)
        best, share = float(own.nanmean()), 0.0
        for value in SHARES:
            loss = _live(model, mine, value)
            if loss < best:
                best, share = loss, value
        layers = {}
        if len(new) >= 2 * FOLDS:
            layers = {layer: follows(x[new, layer], y[new, layer]) for layer in range(x.shape[1])}
        reference = (own_language or {}).get(language, float("nan"))
        yield Diagnosis(language, len(x), float(own.nanmean()), reference, best, share, layers)


def new_rows(batches: Sequence[LanguageBatch]) -> list[int]:
    """Places of the rows whose prompt and whose reference no row before them has.

    A row that is seen in one fold and held out in another would make any two languages follow from each other.
    """
    prompts, references, new = set[tuple[int, ...]](), set[tuple[int, ...]](), list[int]()
    place = 0
    for batch in batches:
        rows = batch.build()
        assert rows.labels is not None and rows.reference_ids is not None and rows.reference_mask is not None
        ends = prompt_ends(rows.attention_mask, predicting(rows.labels)).tolist()
        sizes = rows.reference_mask.sum(dim=1).tolist()
        parallels = [tuple(ids[:size]) for ids, size in zip(rows.reference_ids.tolist(), sizes, strict=True)]
        for ids, end, index in zip(rows.input_ids.tolist(), ends, rows.reference_index.tolist(), strict=True):
            prompt, reference = tuple(ids[: end + 1]), parallels[index]
            if prompt not in prompts and reference not in references:
                new.append(place)
            prompts.add(prompt)
            references.add(reference)
            place += 1
    return new


def reference_losses(model: Any, batches: Mapping[str, Sequence[LanguageBatch]]) -> dict[str, float]:
    """Language -> mean nats a response of the rows given for it: the same questions in the reference language."""
    plain = ConnectedModel.attach(model, ConnectionConfig(connection="none")).eval()
    try:
        return {
            language: float(torch.cat([row_losses(plain, batch, live=False) for batch in own]).nanmean())
            for language, own in batches.items()
        }
    finally:
        plain.unload()


def _live(model: Any, batches: Sequence[LanguageBatch], share: float) -> float:
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
    """(B,) negative log-likelihood of each row's response, in nats; NaN where a row has none.

    Args:
        live: over the live connection; else as a plain model.
    """
    rows = batch.build(connected.model.device)
    assert rows.labels is not None
    ends = prompt_ends(rows.attention_mask, predicting(rows.labels))
    references = (rows.reference_ids, rows.reference_mask, rows.reference_index) if live else (None, None, None)
    logits = connected(rows.input_ids, rows.attention_mask, None, *references, prompt_lengths=ends + 1).logits
    assert logits is not None
    wanted = rows.labels[:, 1:]
    scored = wanted != -100
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), wanted.masked_fill(~scored, 0), reduction="none"
    )
    total = (losses * scored).sum(dim=1)
    return torch.where(scored.any(dim=1), total, total.new_full((), torch.nan)).cpu()
