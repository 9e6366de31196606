"""What a connection sees: batches of one language each, and every layer's activations at the connected positions.

A batch holds rows of one language, so that a figure by language is a sum over batches and no row's language has to be
carried into a layer. The passes are those of training and inference: the reference pass records, then the rows run as
students, as a tuned model answers. A decision is a module that is called with both activations at exactly the
connected positions; a hook on it is all that is needed to see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        """The rows as a model's pass takes them, on `device`."""
        return Batch.of({name: tensor.to(device) for name, tensor in self.inputs.items()})


def language_batches(
    rows: Iterable[Mapping[str, Any]], pad_token_id: int, batch_size: int = 16
) -> list[LanguageBatch]:
    """Batches of one language each, languages in the order they are met; rows without a reference are left out.

    Args:
        rows: of `encode_dataset`.
        pad_token_id: as for `PairedCollator`.

    Raises:
        UserError: no row has a reference.
    """
    by_language: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["reference_input_ids"]:
            by_language.setdefault(row["lang"] or "und", []).append(row)
    if not by_language:
        raise UserError("no row has a parallel in the reference language; give rows with one (prompt_en, say).")
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
    """The languages, each once, in order."""
    return list(dict.fromkeys(batch.language for batch in batches))


@dataclass(frozen=True)
class Seen:
    """One layer's connection over one batch: N connected positions of `rows` rows.

    Attributes:
        language: of the batch. layer: the decoder layer's number.
        reference, own: (N, d) activations e and h. share: (N, d) the decision a in [0, 1].
        row: (N,) row of each position.
        changed: (N, d) h W, what the transform makes of h; h itself where there is none.
    """

    language: str
    layer: int
    reference: Tensor
    own: Tensor
    share: Tensor
    row: Tensor
    rows: int
    changed: Tensor

    @property
    def target(self) -> Tensor:
        """(N, d) f = a e + (1 - a) h, what the transform is taught."""
        return self.share * self.reference + (1 - self.share) * self.own


@torch.no_grad()
def observe(connected: ConnectedModel, batches: Iterable[LanguageBatch]) -> Iterator[Seen]:
    """Run `batches` as students and yield what each layer's connection saw, in fp32; nothing is kept between batches.

    Of an adaptive connection every layer's vector is seen, with a share of 1: its matrix is fitted to the reference's
    vectors as they are.

    Args:
        connected: in eval mode; one with `connection: none` sees nothing.
        batches: of `language_batches`, on any device.
    """
    if connected.training:
        raise ValueError("connected: put it in eval mode first; training draws passes, and dropout would be seen")
    for batch in batches:
        rows = batch.build(connected.model.device)
        for seen in connected.observe(rows):
            found = (seen.reference, seen.own, seen.share, seen.row, len(rows.input_ids), seen.changed)
            yield Seen(batch.language, seen.layer, *found)
