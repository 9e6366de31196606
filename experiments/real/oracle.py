"""Where facts get lost between languages: `python -m experiments.real oracle BASE`.

A model is tuned by plain SFT on facts (BMLAMA-17) asked in English and three other languages and answered in English.
Then each held-out question of another language is asked with the English activation of the same question put in at one
place: at the last token of the subject's name, or of the prompt; in the residual stream after one layer, or in the FFN
outputs of several. Where that brings English's answers, that is what the other language lacks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from cctuning.evaluation.statistics import clustered_bootstrap
from cctuning.markdown import table
from experiments.real.bases import BASES
from experiments.real.cells import Lab, amp
from experiments.real.figures import signed
from experiments.real.names import names_by_question
from experiments.real.recipes import Job, Setting, plain
from experiments.real.registry import world_of
from experiments.real.scoring import Encoded, encode, likelihoods
from experiments.real.worlds import ENGLISH, Bmlama, Item, Text

WORLD = "bmlama-en"
BATCH = 32


class Asked(NamedTuple):
    """A question in one language: where its subject's name ends, in tokens of the prompt."""

    item: Item
    encoded: Encoded
    subject: int


class Place(NamedTuple):
    """Where the English activation is put in: `site` residual or ffn, `token` subject or prompt."""

    site: str
    token: str
    layers: tuple[int, ...]


def places(layers: int) -> list[Place]:
    """The places that are tried in a model of so many layers."""
    depth = sorted({min(layers - 1, round(share * layers)) for share in (0.06, 0.28, 0.5, 0.67, 0.83)})
    thirds = np.array_split(np.arange(layers), 3)
    return [
        *(Place("residual", token, (layer,)) for token in ("subject", "prompt") for layer in depth),
        *(Place("ffn", "subject", tuple(map(int, third))) for third in thirds),
        Place("ffn", "prompt", tuple(range(layers))),
    ]


class Swap:
    """Record activations at one token of each row, and put them in at one token of other rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.at: list[int] = []  # token of each row
        self.into: Place | None = None  # None: record
        self.seen: dict[tuple[str, int], Tensor] = {}  # (rows, d) by site and layer
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_hook(self._hook("residual", number))
            layer.mlp.register_forward_hook(self._hook("ffn", number))

    def _hook(self, site: str, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            rows = torch.arange(len(self.at))
            if self.into is None:
                self.seen[site, number] = hidden[rows, self.at].clone()
            elif site == self.into.site and number in self.into.layers:
                hidden[rows, self.at] = self.seen[site, number]
            return output

        return hook


def asked(world: Bmlama, tokenizer: Any, lang: str, chat: bool, count: int) -> dict[str, Asked]:
    """The test questions whose subject is known in all languages, by id.

    Raises:
        StopIteration: a name that its prompt does not hold.
    """
    found = {}
    rows = world.rows_of("test", lang)
    for place, (name, english) in names_by_question(rows if lang != ENGLISH else world.rows_of("test", "fr")).items():
        item = world.items("test", lang)[place]
        encoded = encode(tokenizer, [item], chat)[0]
        found[item.key] = Asked(item, encoded, _end(tokenizer, encoded[0], english if lang == ENGLISH else name))
        if len(found) == count:
            break
    return found


def _end(tokenizer: Any, ids: Sequence[int], name: str) -> int:
    """Place of the token with which the name ends."""
    return next(place for place in range(len(ids)) if name in tokenizer.decode(ids[: place + 1]))


def scores(
    model: PreTrainedModel, swap: Swap, own: Sequence[Asked], english: Sequence[Asked], where: Place | None
) -> Any:
    """A 1 for each question answered right, with the English activations put in at `where`."""
    dtype, flags = amp(), []
    for start in range(0, len(own), BATCH):
        some, others = own[start : start + BATCH], english[start : start + BATCH]
        swap.at, swap.into = [_token(one, where) for one in others], None
        likelihoods(model, [one.encoded for one in others], dtype)
        swap.at, swap.into = [_token(one, where) for one in some], where or Place("none", "prompt", ())
        for one, (firsts, whole) in zip(some, likelihoods(model, [one.encoded for one in some], dtype), strict=True):
            best = max(range(len(whole)), key=lambda i: (firsts[i], whole[i]))
            flags.append(int(best == one.item.answer))
    return np.array(flags, float)


def _token(one: Asked, where: Place | None) -> int:
    return one.subject if where and where.token == "subject" else len(one.encoded[0]) - 1


def oracle(base: str, accept: Sequence[str], count: int, labels: int, rate: float, epochs: float) -> str:
    """Tune, ask, and return the table as Markdown."""
    set_seed(0)
    world: Any = world_of(WORLD)
    checkpoint, *_ = Lab(Path(), accept).known(base, WORLD)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, chat = AutoTokenizer.from_pretrained(checkpoint), BASES[base].chat
    setting = Setting(Text(labels=labels, answered=world.languages), rate=rate, epochs=epochs)
    with tempfile.TemporaryDirectory(prefix="oracle-") as scratch:
        model = plain(Job(model, tokenizer, world, setting, 0, Path(scratch), chat, amp())).eval()
    questions = {lang: asked(world, tokenizer, lang, chat, count) for lang in world.languages}
    keys = [key for key in questions[ENGLISH] if all(key in found for found in questions.values())]
    by = {lang: [found[key] for key in keys] for lang, found in questions.items()}
    others = [lang for lang in world.languages if lang != ENGLISH]
    swap, lines = Swap(model), []
    before = np.stack([scores(model, swap, by[lang], by[ENGLISH], None) for lang in others], axis=1)
    english = scores(model, swap, by[ENGLISH], by[ENGLISH], None)
    lines.append(["nothing", "", *(f"{100 * share:.1f}" for share in before.mean(0)), ""])
    for where in places(len(model.model.layers)):
        after = np.stack([scores(model, swap, by[lang], by[ENGLISH], where) for lang in others], axis=1)
        layers = str(where.layers[0]) if len(where.layers) == 1 else f"{where.layers[0]} to {where.layers[-1]}"
        change = clustered_bootstrap([100 * (after - before)])
        told = [f"{where.site}, last token of the {where.token}", layers]
        lines.append([*told, *(f"{100 * share:.1f}" for share in after.mean(0)), signed(change)])
    note = f"{len(keys)} test questions; English itself: {100 * english.mean():.1f}."
    return table(["put in", "layer", *others, "change, mean"], lines) + "\n\n" + note
