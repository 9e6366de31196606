"""INCLINE (Wang et al., ACL 2025, arXiv 2410.12462): map activations towards English at inference, without training.

For each language and layer a matrix W is fitted by least squares from the FFN outputs of its sentences to those of
their English, averaged over tokens. At inference the FFN outputs h of the prompt's last token become h + s h W in all
layers at once, h being those of an unchanged pass. As in the authors' repository (weixuan-wang123/INCLINE,
intervention.py), but s is chosen for each language on `dev`, here among `STRENGTHS`; theirs is searched on the test
items. The model is the one tuned by plain SFT on the English rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.real.recipes import Job, padded, plain
from experiments.real.scoring import encode, right
from experiments.real.worlds import ENGLISH, Item

STRENGTHS = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)  # of the change; 0 is tried first
BATCH = 64


class Incline:
    """The change, attached to a model; `scoring` tells it the language and where prompts end.

    Attributes:
        matrices: language -> (layers, d, d). strengths: language -> s.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.matrices: dict[str, Tensor] = {}
        self.strengths: dict[str, float] = {}
        self.language = ENGLISH
        self.ends: list[int] = []
        self._seen: list[Tensor] | None = None  # FFN outputs of the unchanged pass, while it runs
        self._changed: list[Tensor] = []  # (N, d) of each layer, for the pass that follows
        model.model.register_forward_pre_hook(self._look, with_kwargs=True)
        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_hook(self._hook(number))

    def outputs(self, model: PreTrainedModel, sequences: Sequence[list[int]], amp: torch.dtype | None) -> Tensor:
        """FFN outputs averaged over tokens, (N, layers, d)."""
        found = []
        for start in range(0, len(sequences), BATCH):
            inputs = padded(sequences[start : start + BATCH], model.device)
            self._seen, self.ends = [], []
            with torch.no_grad(), torch.autocast(model.device.type, dtype=amp, enabled=amp is not None):
                model.model(**inputs, use_cache=False)
            mask = inputs["attention_mask"][..., None].float()
            found.append(torch.stack([(h.float() * mask).sum(1) / mask.sum(1) for h in self._seen], dim=1).cpu())
            self._seen = None
        return torch.cat(found)

    def _look(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._seen is not None or not self.strengths.get(self.language):
            return
        self._seen = []
        module(*args, **kwargs)
        rows = torch.arange(len(self.ends))
        seen, self._seen = self._seen, None
        matrices, strength = self.matrices[self.language], self.strengths[self.language]
        last = [h[rows, self.ends].float() for h in seen]
        self._changed = [h + strength * h @ matrix.to(h) for h, matrix in zip(last, matrices, strict=True)]

    def _hook(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if self._seen is not None:
                self._seen.append(output.detach())
                return output
            if not self.strengths.get(self.language):
                return output
            changed = output.clone()
            changed[torch.arange(len(self.ends)), self.ends] = self._changed[number].to(output.dtype)
            return changed

        return hook


def incline(job: Job) -> PreTrainedModel:
    """Plain SFT, then the change with the strength that is best on `dev`, by language."""
    model = plain(job).eval()
    change = Incline(model)
    model.intervention = change
    pairs = job.pairs()
    for lang in dict.fromkeys(pair["lang"] for pair in pairs):
        own = [pair for pair in pairs if pair["lang"] == lang]
        sides = [[Item("", pair[side], (), 0) for pair in own] for side in ("text", "reference")]
        text, english = (
            change.outputs(model, [ids for ids, _ in encode(job.tokenizer, side, job.chat)], job.amp) for side in sides
        )
        fitted = [torch.linalg.lstsq(text[:, n], english[:, n], driver="gelsd").solution for n in range(text.shape[1])]
        change.matrices[lang] = torch.stack(fitted).to(model.device)
        change.strengths[lang] = _best(job, model, change, lang)
    job.noted.append({"strengths": dict(change.strengths)})
    return model


def _best(job: Job, model: PreTrainedModel, change: Incline, lang: str) -> float:
    items = job.world.items("dev", lang)
    change.language, scores = lang, {}
    for strength in (0.0, *STRENGTHS):
        change.strengths[lang] = strength
        flags = right(model, job.tokenizer, items, chat=job.chat, first_token=job.world.first_token, amp=job.amp)
        scores[strength] = flags.count("1")
    return max(scores, key=scores.__getitem__)
