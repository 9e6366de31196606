"""Measure how well parallel text is aligned in a model, by layer and language.

Texts are pooled as `connection: align` pools them, in units of the spread of the references (`connection/align.py`).
*error* is the mean squared error per dimension; 1 is no better than the mean reference. *found* is the share of texts
whose nearest reference by cosine is the right one; chance is 1 / references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.recorded import Prompts, RecordedReferences, record


@dataclass(frozen=True)
class Alignment:
    """
    Attributes:
        layers: L numbers. languages: G codes. pairs: G counts. references: number of distinct references.
        error, found: (G, L).
        spread: (L,) share of the references' squared norm that differs between them.
    """

    layers: list[int]
    languages: list[str]
    pairs: list[int]
    references: int
    error: Tensor
    found: Tensor
    spread: Tensor

    def best_layers(self, width: int) -> list[int]:
        """The `width` consecutive layers in which most texts are found, averaged over languages."""
        mean = self.found.mean(dim=0)
        start = max(range(len(self.layers) - width + 1), key=lambda first: float(mean[first : first + width].sum()))
        return self.layers[start : start + width]


def sides(rows: Sequence[Mapping[str, Any]]) -> tuple[Prompts, Prompts, Tensor]:
    """The distinct references of N encoded pairs, their texts, and the place (N,) of each text's reference."""
    met: dict[tuple[int, ...], int] = {}
    which = [met.setdefault(tuple(row["reference_input_ids"]), len(met)) for row in rows]
    first = [rows[which.index(number)] for number in range(len(met))]
    references = Prompts(list(met), torch.tensor([row["reference_text"] for row in first]).reshape(-1, 2))
    texts = Prompts([row["input_ids"] for row in rows], torch.tensor([row["text"] for row in rows]).reshape(-1, 2))
    return references, texts, torch.tensor(which)


def compare(
    references: RecordedReferences, texts: RecordedReferences, which: Tensor, languages: Sequence[str]
) -> Alignment:
    """Measure recorded texts against recorded references.

    Args:
        which: (N,) place of each text's reference.
        languages: (N,) code of each text.
    """
    codes = sorted(set(languages))
    rows = {code: torch.tensor([n for n, lang in enumerate(languages) if lang == code]) for code in codes}
    there, mine = (side.take(torch.arange(side.size)) for side in (references, texts))
    own = which.to(references.device)
    errors, found, spread = [], [], []
    for layer in references.layers:
        statistics = references.statistics[layer]
        z, target = statistics.z(mine[layer]), statistics.z(there[layer])
        missed = (z - target[own]).square().mean(dim=1)
        right = (normalize(z, dim=-1) @ normalize(target, dim=-1).T).argmax(dim=1) == own
        errors.append([float(missed[rows[code]].mean()) for code in codes])
        found.append([float(right[rows[code]].float().mean()) for code in codes])
        variance = statistics.spread.square().sum()
        spread.append(float(variance / (variance + statistics.mean.square().sum())))
    return Alignment(
        list(references.layers),
        codes,
        [len(rows[code]) for code in codes],
        references.size,
        torch.tensor(errors).T,
        torch.tensor(found).T,
        torch.tensor(spread),
    )


def of_text(model: PreTrainedModel, encoder: Encoder, pairs: Sequence[Mapping[str, str]]) -> Alignment:
    """Measure parallel text in all layers of a model.

    Args:
        encoder: of the model's tokenizer, which has a padding token.
        pairs: `text`, `reference` and `lang` of each; pairs that are too long are left out.
    """
    rows = [{"prompt": pair["text"], "reference": pair["reference"], "lang": pair["lang"]} for pair in pairs]
    encoded = [row for row in encoder.encode(rows) if not isinstance(row, UserError)]
    if not encoded:
        raise UserError("parallel: no pair fits the model's length; raise --max_length.")
    depth = model.config.get_text_config().num_hidden_layers
    connected = ConnectedModel.attach(model, ConnectionConfig(connection="align", layers=list(range(depth)))).eval()
    try:
        references, texts, which = sides(encoded)
        pad = int(cast(Any, encoder.tokenizer.pad_token_id))
        there, mine = (record(connected, side, pad=pad, folder=None) for side in (references, texts))
        return compare(there, mine, which, [row["lang"] for row in encoded])
    finally:
        connected.unload()
