"""Batches of one language each, and the activations at the connected positions of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cctuning.connection import Observed
from cctuning.data import PairedCollator
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.passes import Batch


@dataclass(frozen=True)
class LanguageBatch:
    """Rows of one language, each with a reference. `inputs`: as `PairedCollator` gives them."""

    language: str
    inputs: dict[str, Tensor]

    def build(self, device: torch.device | str = "cpu") -> Batch:
        """The batch of a model's pass, on `device`."""
        return Batch.of({name: tensor.to(device) for name, tensor in self.inputs.items()})


def language_batches(
    rows: Iterable[Mapping[str, Any]], pad_token_id: int, batch_size: int = 16
) -> list[LanguageBatch]:
    """Batches of one language each, in the order of the rows; rows without a reference are left out.

    Args:
        rows: from `encode_dataset`.
        pad_token_id: as for `PairedCollator`.

    Raises:
        UserError: no row has a reference.
    """
    by_language: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["reference_input_ids"]:
            by_language.setdefault(row["lang"] or "und", []).append(row)
    if not by_language:
        raise UserError("no row has a reference prompt; use rows with one, for example in a column prompt_en.")
    collate = PairedCollator(pad_token_id)
    return [
        LanguageBatch(language, collate(own[start : start + batch_size]))
        for language, own in by_language.items()
        for start in range(0, len(own), batch_size)
    ]


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of `items`, evenly spread."""
    kept = min(limit, len(items))
    return [items[place * len(items) // kept] for place in range(kept)]


def languages_of(batches: Sequence[LanguageBatch]) -> list[str]:
    """The languages without duplicates, in order."""
    return list(dict.fromkeys(batch.language for batch in batches))


@dataclass(frozen=True)
class Seen(Observed):
    """One layer's connection over a batch of `rows` rows in one language; (N, d) activations as in `Observed`."""

    language: str
    rows: int

    @property
    def target(self) -> Tensor:
        """(N, d) f = a e + (1 - a) h, the target of the transform."""
        return self.share * self.reference + (1 - self.share) * self.own


@torch.no_grad()
def observe(connected: ConnectedModel, batches: Iterable[LanguageBatch]) -> Iterator[Seen]:
    """Run batches through the student pass and yield the activations of each layer's connection, in fp32.

    An adaptive connection yields the vectors of every layer with a share of 1, since its matrix is fitted to the
    reference's vectors.

    Args:
        connected: in eval mode; nothing is yielded for `connection: none`.
        batches: from `language_batches`, on any device.
    """
    if connected.training:
        raise ValueError("connected: expected eval mode, since training samples passes and uses dropout")
    for batch in batches:
        rows = batch.build(connected.model.device)
        for seen in connected.observe(rows):
            yield Seen(**vars(seen), language=batch.language, rows=len(rows.input_ids))
