"""Two languages of one prompt each, so that every activation is known, and seen without the code under test."""

from __future__ import annotations

import torch

from cctuning.analysis import LanguageBatch
from cctuning.data import PairedCollator
from cctuning.model.connected import ConnectedModel
from tests.conftest import tiny_llama

PROMPTS = {"aa": [5, 6, 7, 8], "bb": [20, 21, 22]}
REFERENCE = [30, 31, 32]
ANSWER = [40, 41]


def row(prompt: list[int], language: str, reference: list[int], answer: list[int] = ANSWER, number: int = 0) -> dict:
    labels = [-100] * len(prompt) + answer
    ids = {"input_ids": prompt + answer, "labels": labels, "reference_input_ids": reference}
    return {**ids, "row": number, "lang": language}


def batches(rows: int = 3) -> list[LanguageBatch]:
    collate = PairedCollator(0)
    return [
        LanguageBatch(language, collate([row(prompt, language, REFERENCE, number=i) for i in range(rows)]))
        for language, prompt in PROMPTS.items()
    ]


def random_rows(language: str, count: int, seed: int, same: bool = False) -> list[dict]:
    """Random prompts of uneven length; with `same`, each is its own parallel."""
    generator = torch.Generator().manual_seed(seed)

    def ids(place: int) -> list[int]:
        return torch.randint(3, 64, (4 + place % 3,), generator=generator).tolist()

    made = []
    for place in range(count):
        prompt = ids(place)
        made.append(row(prompt, language, prompt if same else ids(place + 1), number=place))
    return made


@torch.no_grad()
def ffn(model, ids: list[int]) -> list[torch.Tensor]:
    """The FFN's output at the last token, layer by layer, (d,) each: of a plain model, or of the base as it stands."""
    kept: list[torch.Tensor] = []
    handles = [
        layer.mlp.down_proj.register_forward_hook(lambda module, args, output: kept.append(output[0, -1]))
        for layer in model.model.layers
    ]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return kept


def attach(config, layers: int = 3) -> ConnectedModel:
    return ConnectedModel.attach(tiny_llama(layers=layers), config).eval()
