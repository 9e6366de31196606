"""Metrics of a run: of each batch, the evaluation loss by language, and how well parallel text is aligned.

Texts are pooled as `connection: align` pools them, in units of the spread of the references (`connection/align.py`).
*error* is the mean squared error per dimension; 1 is no better than the mean reference. *found* is the share of texts
whose nearest reference by cosine is the right one; chance is 1 / references.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import RecordedReferences
from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.objective import ConnectedOutput
from cctuning.model.recorded import Prompts, distinct, record

PARTS = ("student_loss", "fused_loss", "align_loss", "identity_loss", "distill_loss", "decision")


def batch_metrics(
    outputs: ConnectedOutput, gather: Callable[[Tensor], Tensor], filler: bool, layers: Iterable[int]
) -> dict[str, float]:
    """Compute the metrics of a batch over all processes. All processes call it.

    Metrics that no process has are left out.

    Args:
        gather: gathers a tensor from all processes.
        filler: this process has no rows left and its batch does not count.
        layers: those whose mean decision is logged.
    """
    assert outputs.correct is not None and outputs.scored is not None and outputs.loss is not None
    parts = {name: getattr(outputs, name) for name in PARTS}
    parts |= {f"decision_layer_{layer:02d}": (outputs.decisions or {}).get(layer) for layer in layers}
    # A process whose batch has no such part takes part in the collective with NaN, which the mean leaves out.
    missing = outputs.loss.new_full((), torch.nan, dtype=torch.float)
    mine = [missing if part is None or filler else part.detach().float() for part in parts.values()]
    means = gather(torch.stack(mine)[None]).nanmean(dim=0).tolist()
    correct, scored = gather(torch.stack([outputs.correct, outputs.scored])[None]).sum(dim=0).tolist()
    found = {"mean_token_accuracy": correct / scored} if scored else {}
    return found | {name: mean for name, mean in zip(parts, means, strict=True) if not math.isnan(mean)}


class EvaluationLoss:
    """Losses of the current evaluation, by row.

    Rows are kept by id, so that a row which accelerate gives to two processes counts once. transformers' `eval_loss`,
    a mean over batches, depends on how rows fall into batches; this one replaces it.
    """

    def __init__(self) -> None:
        self.languages: dict[int, str] = {}
        self.rows: dict[int, tuple[int, float, float, float]] = {}  # tokens; losses of student, fused pass, alignment

    def start(self, dataset: Any) -> None:
        """Start an evaluation of `dataset`; only the output of `encode_dataset` has languages."""
        known = isinstance(dataset, Dataset) and {"row", "lang"} <= set(dataset.column_names)
        self.languages = dict(zip(dataset["row"], dataset["lang"], strict=True)) if known else {}
        self.rows = {}

    def add(self, inputs: Mapping[str, Tensor], outputs: ConnectedOutput) -> None:
        """Add a batch."""
        assert outputs.student_row_loss is not None and outputs.row_loss is not None
        student, aligned = outputs.student_row_loss, outputs.align_row_loss
        if aligned is None:
            aligned = torch.full_like(student, torch.nan)
        tokens = (inputs["labels"][:, 1:] != -100).sum(dim=1)
        parts = (inputs["row"], tokens, student, outputs.row_loss - student, aligned)
        self.rows |= {row: values for row, *values in zip(*(part.tolist() for part in parts), strict=True)}

    def result(self, prefix: str) -> dict[str, float]:
        """All processes call it.

        Returns:
            Per response token: `<prefix>_loss`, `<prefix>_loss_<language>` if there are several languages, and
            `<prefix>_fused_loss` of the rows that ran with their reference. Per row: `<prefix>_align_loss`.
        """
        rows = {row: own for row, own in dict(gather_object([*self.rows.items()])).items() if row in self.languages}
        scored = [(self.languages[row], *own) for row, own in rows.items() if own[0]]
        found = {}
        if scored:
            found[f"{prefix}_loss"] = _per_token((count, loss) for _, count, loss, *_ in scored)
        languages = sorted({one[0] for one in scored})
        for language in languages if len(languages) > 1 else ():
            own = ((count, loss) for code, count, loss, *_ in scored if code == language)
            found[f"{prefix}_loss_{language or 'unknown'}"] = _per_token(own)
        if fused := [(count, loss) for _, count, _, loss, _ in scored if loss]:
            found[f"{prefix}_fused_loss"] = _per_token(fused)
        if errors := [own[-1] for own in rows.values() if not math.isnan(own[-1])]:
            found[f"{prefix}_align_loss"] = sum(errors) / len(errors)
        return found


def _per_token(rows: Iterable[tuple[int, float]]) -> float:
    counts, losses = zip(*rows, strict=True)
    return float(sum(losses) / sum(counts))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the global generators (Python's, NumPy's, torch's) on exit."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


# -- alignment -------------------------------------------------------------------------------------------------------


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


def sides(pairs: Sequence[Mapping[str, Any]]) -> tuple[Prompts, Prompts, Tensor]:
    """The distinct references of N encoded pairs, their texts, and the place (N,) of each text's reference."""
    references, which = distinct(Dataset.from_list([*pairs]))
    texts = Prompts([row["input_ids"] for row in pairs], torch.tensor([row["text"] for row in pairs]))
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
        encoder: of the model's tokenizer.
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
        there, mine = (record(connected, side) for side in (references, texts))
        return compare(there, mine, which, [row["lang"] for row in encoded])
    finally:
        connected.unload()
