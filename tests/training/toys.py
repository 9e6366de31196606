"""A tokenizer, rows and a model small enough to train in a second."""

from __future__ import annotations

import random

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import tiny_llama

WORDS = [f"w{i}" for i in range(26)] + [f"x{i}" for i in range(26)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(chat: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<unk>")
    if pad:
        made.pad_token = "<pad>"
    if chat:
        made.chat_template = TEMPLATE
    return made


def rows(count: int = 24, seed: int = 0) -> Dataset:
    """Row i asks in language x (`x` words) what its reference asks in `w` words; every fourth has no reference, every
    fifth no response; lengths differ."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        picks = [draw.randrange(26) for _ in range(3 + i % 4)]
        english = i % 4 == 3
        made.append(
            {
                "prompt": " ".join(("w" if english else "x") + str(p) for p in picks),
                "response": None if i % 5 == 4 and not english else " " + " ".join(f"w{p}" for p in picks[:2]),
                "lang": "en" if english else "qaa",
                "reference": None if english else " ".join(f"w{p}" for p in picks),
                "origin": f"rows.jsonl:{i + 1}",
                "row": i,
            }
        )
    return Dataset.from_list(made)


def model() -> PreTrainedModel:
    return tiny_llama(layers=2)
