"""Real text for a base: a tokenizer trained on it, and its lines packed into rows without padding between them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def train_tokenizer(lines: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens, a token a digit, for worlds of real text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Not ByteLevel's own pattern, which cuts words of Indic scripts at every vowel sign.
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [UNKNOWN, PAD, EOS]
    core.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.padding_side = "right"
    return tokenizer


def pack(lines: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lines in a drawn order as rows of `length` tokens, whole but for those that are longer than a row.

    Returns:
        ids and labels (N, length); a line's first token is no label, as nothing of its own line tells of it.
    """
    drawn = list(lines)
    random.Random(seed).shuffle(drawn)
    rows: list[tuple[list[int], list[int]]] = [([], [])]
    for line in tokenizer(drawn, add_special_tokens=False)["input_ids"]:
        own = [*line[: length - 1], tokenizer.eos_token_id]
        if len(rows[-1][0]) + len(own) > length:
            rows.append(([], []))
        rows[-1][0].extend(own)
        rows[-1][1].extend([-100, *own[1:]])
    for ids, labels in rows:
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        labels += [-100] * (length - len(labels))
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows])


def positions_of(ids: Tensor, eos: int) -> Tensor:
    """Each token's place in its own line (N, T): by it the model keeps packed lines apart."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = torch.nn.functional.pad(ids[:, :-1] == eos, (1, 0))
    return places - torch.where(starts, places, 0).cummax(dim=1).values
