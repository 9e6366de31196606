"""Learn from the English model's answers: its labels for parallel text, or its distribution.

`pseudo`: plain SFT on the English rows; the model so tuned answers the English side of every pair; plain SFT of the
base on the answered rows and on the texts with those answers. `align-pseudo` aligns these texts to their English as
well, `pack-pseudo` starts from a language pack. `distil` (self-distillation from the English prompt):
the tuned model itself goes on, and what it predicts after the text is pulled to what it predicted, as it was, after
the English sentence:

    L = L_SFT + weight * KL(p_start(. | English) || p(. | text)),   at the prompt's last token

Both need the parallel text to be of the task's own kind: a sentence that could be a prompt.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning import CCTrainer
from experiments.real.recipes import Job, mixed_options, packed, padded, tune
from experiments.real.scoring import encode, likelihoods
from experiments.real.worlds import BREAK, ENGLISH, Item


def pseudo(job: Job) -> PreTrainedModel:
    """Labels for the parallel text by the English model, then plain SFT on them and on the answered rows."""
    start = copy.deepcopy(job.model)
    return tune(job, start, "pseudo", labelled(job, job.model), given=mixed_options(job))


def align_pseudo(job: Job) -> PreTrainedModel:
    """As `pseudo`, with each labelled text aligned to its English."""
    start = copy.deepcopy(job.model)
    given = {**mixed_options(job), "bad_rows": "skip"}  # a sentence may end in its label
    return tune(job, start, "align", labelled(job, job.model, True), kind="align", given=given)


def pack_pseudo(job: Job) -> PreTrainedModel:
    """As `pseudo`, from a language pack: it is tuned on English rows, labels the text, and is tuned on both."""
    start = packed(job)
    return tune(job, start, "pseudo", labelled(job, copy.deepcopy(start)), given=mixed_options(job))


def labelled(job: Job, model: PreTrainedModel, references: bool = False) -> list[dict[str, Any]]:
    """The answered rows of all epochs and `share` times as many texts, with labels by `model` tuned on those rows.

    references: the texts have their English beside them.
    """
    setting = job.setting
    teacher = tune(job, model, "teacher", job.rows())
    labels = tuple(sorted({row["response"] for row in job.rows()}))
    pairs = job.pairs()
    asked = list(dict.fromkeys(pair["reference"] for pair in pairs))
    given = dict(zip(asked, _answers(job, teacher.eval(), asked, labels), strict=True))
    rows = [
        {"prompt": pair["text"] + BREAK, "response": given[pair["reference"]], "lang": pair["lang"]} for pair in pairs
    ]
    answered = job.rows()
    if references:
        rows = [{**row, "reference": pair["reference"] + BREAK} for row, pair in zip(rows, pairs, strict=True)]
        answered = [{**row, "reference": None} for row in answered]
    answered *= round(setting.epochs)
    return answered + job.rng.choices(rows, k=len(answered) * setting.share)


def _answers(job: Job, model: PreTrainedModel, sentences: Sequence[str], labels: tuple[str, ...]) -> list[str]:
    items = [Item("", sentence + BREAK, labels, 0) for sentence in sentences]
    encoded, found = encode(job.tokenizer, items, job.chat), []
    for start in range(0, len(encoded), 64):
        for _, scores in likelihoods(model, encoded[start : start + 64], job.amp):
            found.append(labels[max(range(len(labels)), key=scores.__getitem__)])
    return found


class DistilTrainer(CCTrainer):
    """Plain SFT and the KL above on `number` pairs a step."""

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        sides: Sequence[tuple[list[int], list[int]]],
        number: int,
        weight: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._teacher, self._sides, self._number, self._weight = teacher.eval(), list(sides), number, weight
        self._draw = random.Random(f"distil {self.args.seed}")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """The SFT loss and the weighted KL."""
        loss = super().compute_loss(model, inputs, False, *args, **kwargs)
        pairs = self._draw.sample(self._sides, min(self._number, len(self._sides)))
        with torch.no_grad():
            target = self._predicted(self._teacher, [reference for _, reference in pairs])
        given = self._predicted(self.model, [text for text, _ in pairs])
        return loss + self._weight * nn.functional.kl_div(given, target, reduction="batchmean", log_target=True)

    def _predicted(self, model: PreTrainedModel, sequences: Sequence[list[int]]) -> Tensor:
        """(N, V) log-probabilities after each sequence."""
        inputs = padded(sequences, model.device)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return model.lm_head(hidden[torch.arange(len(last), device=last.device), last]).float().log_softmax(-1)


def distil(job: Job) -> PreTrainedModel:
    """Plain SFT on the English rows, then half as long again with the KL."""
    setting = job.setting
    model = tune(job, job.model, "teacher", job.rows())
    pairs = job.pairs()
    items = [Item("", side + BREAK, (), 0) for pair in pairs for side in (pair["text"], pair["reference"])]
    prompts = [prompt for prompt, _ in encode(job.tokenizer, items, job.chat)]
    return tune(
        job,
        model,
        "distil",
        [row for row in job.rows() if row["lang"] == ENGLISH],
        trainer=DistilTrainer,
        teacher=copy.deepcopy(model),
        sides=[(prompts[2 * i], prompts[2 * i + 1]) for i in range(len(pairs))],
        number=setting.batch * setting.share,
        weight=1.0 if setting.weight is None else setting.weight,
    )
