"""Score answers: which candidate a model finds likeliest after a prompt, and what it writes.

A prompt and the tokens of its candidates make one sequence, in which a candidate sees the prompt and itself alone (a
4-D mask) and stands where it would stand right after the prompt (its positions). So the prompt is read once, and the
result is that of reading each candidate by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.real.worlds import Item

TOKENS = {"cpu": 4096, "cuda": 16384}  # of a batch, padding included
Encoded = tuple[list[int], list[list[int]]]  # a prompt's ids, and those of each candidate


def right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    chat: bool = False,
    first_token: bool = False,
    amp: torch.dtype | None = None,
    encoded: Sequence[Encoded] | None = None,
) -> str:
    """A `1` for each item whose right candidate is the likeliest, else a `0`.

    Args:
        chat: prompts go through the chat template.
        first_token: compare the candidates' first tokens alone; candidates that share one are told apart by the rest.
        amp: dtype of autocast. encoded: the items as `encode` gave them, if known.
    """
    flags = ["0"] * len(items)
    encoded = encoded or encode(tokenizer, items, chat)
    for places in _batches(encoded, TOKENS[model.device.type]):
        scores = likelihoods(model, [encoded[place] for place in places], amp)
        for place, (firsts, whole) in zip(places, scores, strict=True):
            if first_token:
                best = max(range(len(whole)), key=lambda i: (firsts[i], whole[i]))
            else:
                best = max(range(len(whole)), key=whole.__getitem__)
            flags[place] = "01"[best == items[place].answer]
    return "".join(flags)


@torch.no_grad()
def written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    amp: torch.dtype | None = None,
    tokens: int = 16,
    batch: int = 64,
) -> list[str]:
    """The model's greedy answer to each prompt: the first line of up to `tokens` tokens."""
    answers = [""] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        prompts = [torch.tensor(encoded[place][0]) for place in places]
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True, padding_side="left")
        with torch.autocast(model.device.type, dtype=amp, enabled=amp is not None):
            made = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
            )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            answers[place] = text.strip().split("\n")[0].strip()
    return answers


def exact(answers: Sequence[str], items: Sequence[Item]) -> dict[str, str]:
    """Flags of written answers: `exact` matches, and those in the `language` asked (any candidate of `items`).

    Names are too short for identifying a language from the letters, so an answer counts if it is one of the names that
    the language's questions offer.
    """
    names = {_plain(candidate) for item in items for candidate in item.candidates}
    return {
        "exact": "".join(
            "01"[_plain(answer) == _plain(item.candidates[item.answer])]
            for answer, item in zip(answers, items, strict=True)
        ),
        "language": "".join("01"[_plain(answer) in names] for answer in answers),
    }


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip().rstrip(".")


def encode(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], chat: bool) -> list[Encoded]:
    """(prompt's ids, each candidate's ids), tokenised as training tokenises them: prompt and answer as one text."""
    opening = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts: list[str] = []
    for item in items:
        prompt = render(tokenizer, item.prompt) if chat else item.prompt
        texts += [prompt, *(prompt + candidate for candidate in item.candidates)]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    found = []
    for item in items:
        prompt_ids, answers = list(next(ids)), []
        for candidate in item.candidates:
            whole = list(next(ids))
            if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
                whole = prompt_ids + list(tokenizer(candidate, add_special_tokens=False)["input_ids"])
            answers.append(whole[len(prompt_ids) :])
        found.append((opening + prompt_ids, answers))
    return found


def render(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt as one user message, up to where the answer starts."""
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def _batches(encoded: Sequence[Encoded], tokens: int) -> list[list[int]]:
    """Places of items, long ones together, no batch above `tokens`."""
    lengths = [len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in encoded]
    batches: list[list[int]] = []
    for place in sorted(range(len(encoded)), key=lengths.__getitem__, reverse=True):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel, batch: Sequence[Encoded], amp: torch.dtype | None = None
) -> list[tuple[list[float], list[float]]]:
    """Of each item, its candidates' log-probability: of the first token, and of the whole."""
    packed = [_packed(prompt, answers) for prompt, answers in batch]
    width = max(len(one["ids"]) for one in packed)
    ids, positions = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
    for row, one in enumerate(packed):
        size = len(one["ids"])
        ids[row, :size], positions[row, :size] = torch.tensor(one["ids"]), torch.tensor(one["positions"])
        seen[row, :size, :size] = one["seen"]
    device = model.device
    if hasattr(model, "intervention"):  # a method that changes activations at inference
        model.intervention.ends = [len(prompt) - 1 for prompt, _ in batch]
    with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
        mask = seen[:, None].to(device)
        hidden = model.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=_mask(model, mask),
            use_cache=False,
        ).last_hidden_state
        asked = [(row, place, token) for row, one in enumerate(packed) for place, token in one["asked"]]
        places = {where: number for number, where in enumerate(dict.fromkeys(one[:2] for one in asked))}
        rows, columns = (torch.tensor(side, device=device) for side in zip(*places, strict=True))
        logits = model.lm_head(hidden[rows, columns]).float().log_softmax(-1)
    numbers = torch.tensor([places[row, place] for row, place, _ in asked], device=device)
    scores = logits[numbers, torch.tensor([token for *_, token in asked], device=device)].tolist()
    found, start = [], 0
    for _, answers in batch:
        firsts, whole = [], []
        for answer in answers:
            own = scores[start : start + len(answer)]
            firsts.append(own[0])
            whole.append(sum(own))
            start += len(answer)
        found.append((firsts, whole))
    return found


def _packed(prompt: list[int], answers: Sequence[list[int]]) -> dict[str, Any]:
    """One sequence: the prompt, then each answer but for its last token, which nothing needs to be read after."""
    ids, positions, asked = list(prompt), list(range(len(prompt))), []
    size = len(prompt) + sum(len(answer) - 1 for answer in answers)
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    for answer in answers:
        start, before = len(ids), len(prompt) - 1
        for number, token in enumerate(answer):
            asked.append((before, token))
            if number < len(answer) - 1:
                before = len(ids)
                ids.append(token)
                positions.append(len(prompt) + number)
        seen[start : len(ids), len(prompt) : start] = False
    return {"ids": ids, "positions": positions, "asked": asked, "seen": seen}


def _mask(model: PreTrainedModel, mask: Tensor) -> Any:
    """The mask as the model takes one that is made already; prompts are shorter than any sliding window here."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return dict.fromkeys(kinds, mask) if kinds else mask
