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
from torch import Tensor, nn

from cctuning.connection import Reference, predicting, prompt_ends
from cctuning.data import PairedCollator
from cctuning.errors import UserError
from cctuning.model.adaptive_model import AdaptiveModel
from cctuning.model.connected import ConnectedModel
from cctuning.model.passes import Batch, plan_inference


@dataclass(frozen=True)
class LanguageBatch:
    """Rows of one language, each with a reference. `inputs`: as `PairedCollator` gives them."""

    language: str
    inputs: dict[str, Tensor]

    def build(self, device: torch.device | str = "cpu") -> Batch:
        """The rows as a model's pass takes them, on `device`."""
        own = ("input_ids", "attention_mask", "labels")
        names = (*own, "reference_input_ids", "reference_attention_mask", "reference_index")
        return Batch.build(*(self.inputs[name].to(device) for name in names))


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
        if isinstance(connected, AdaptiveModel):
            yield from _adaptive(connected, batch.language, rows)
        elif connected.connections:
            yield from _gated(connected, batch.language, rows)


def _gated(connected: ConnectedModel, language: str, batch: Batch) -> Iterator[Seen]:
    assert batch.labels is not None
    plan = plan_inference(batch, connected.config, predicting(batch.labels))
    plan.fused = None  # nobody fused: the activations are those a tuned model has when it answers
    recorded = connected._reference_pass(batch)
    plan.reference, plan.memory = recorded.reference, recorded.memory
    decided: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
            decided[layer] = (args[0], args[1], output)

        return keep

    layers = connected.connections
    handles = [connection.decision.register_forward_hook(keeper(layer)) for layer, connection in layers.items()]
    try:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        connected._run(None, plan, batch.input_ids.new_empty(0), **inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert plan.connect_row is not None
    for layer, (reference, own, share) in decided.items():
        transform = layers[layer].transform
        changed = own if transform is None else own + transform(own)
        yield Seen(
            language,
            layer,
            reference.float(),
            own.float(),
            share.float().expand_as(own),
            plan.connect_row,
            plan.rows,
            changed.float(),
        )


def _adaptive(connected: AdaptiveModel, language: str, batch: Batch) -> Iterator[Seen]:
    assert batch.labels is not None and batch.reference_ids is not None and batch.reference_mask is not None
    ends = prompt_ends(batch.attention_mask, predicting(batch.labels))
    own = connected._vectors(batch.input_ids, batch.attention_mask, ends, False)
    last = Reference.from_mask(batch.reference_mask).last
    theirs = connected._vectors(batch.reference_ids, batch.reference_mask, last, False)[batch.reference_index]
    changed = connected.adaptive.matrix(own.to(connected.adaptive.matrix.weight.dtype)).float()
    row = torch.arange(len(own), device=own.device)
    for layer in range(own.shape[1]):
        e, h = theirs[:, layer].float(), own[:, layer].float()
        yield Seen(language, layer, e, h, torch.ones_like(h), row, len(own), changed[:, layer])
