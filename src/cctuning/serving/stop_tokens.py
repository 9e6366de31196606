"""Stop tokens and stop strings of generation, and the answer without the thinking before it.

A model is trained to write what its chat template writes after an answer (`<|im_end|>`, `<end_of_turn>`). The
generation config of a base model often has its EOS token only, and generation would continue into the next turn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cctuning.data import Encoder
from cctuning.errors import UserError


def stop_tokens(encoder: Encoder, model: PreTrainedModel) -> list[int]:
    """Ids that end generation: of the model's generation config, the EOS token and the template's end of turn."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [own] if isinstance(own, int) else list(own or [])
    ids += [encoder.tokenizer.eos_token_id, _end_of_turn(encoder)]
    return list(dict.fromkeys(token for token in ids if isinstance(token, int)))


def generation_config(encoder: Encoder, model: PreTrainedModel) -> GenerationConfig:
    """The model's generation config with `stop_tokens` as its EOS tokens.

    A stop string (`stop_text`) is not part of it: with one, `generate` raises unless it is given a tokenizer.
    """
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    stops = stop_tokens(encoder, model)
    if stops:
        config.eos_token_id = stops[0] if len(stops) == 1 else stops
    if config.pad_token_id is None:
        config.pad_token_id = encoder.tokenizer.pad_token_id
    try:
        config.validate(strict=True)
    except ValueError as error:
        where = model.config.name_or_path or "the base model"
        raise UserError(f"generation_config.json of {where}: not valid for transformers ({error}); fix it.") from error
    return config


def stop_text(encoder: Encoder) -> str | None:
    """The template's end of turn where it is ordinary text; None where it is a token."""
    return encoder.closing.strip() or None if _end_of_turn(encoder) is None else None


def answer_end(encoder: Encoder) -> str | None:
    """Text at which an answer is cut: the end of turn, which decoding keeps where it is no special token."""
    token = _end_of_turn(encoder)
    return stop_text(encoder) if token is None else str(encoder.tokenizer.decode([token]))


@dataclass(frozen=True)
class Thoughts:
    """The texts by which a template separates thinking from the answer."""

    ending: str  # between thinking and answer
    lead: str  # before an answer without thinking
    opening: str | None  # before the thinking; empty where the prompt contains it; None where it is not known
    may: bool  # the model decides whether to think

    @classmethod
    def of(cls, encoder: Encoder) -> Thoughts | None:
        """None where the template has no thinking."""
        settled = encoder.settled
        if settled is None or not settled.ending or not settled.ending.strip():
            return None
        opening = None if settled.opening is None else settled.opening.strip()
        return cls(settled.ending.strip(), settled.lead.strip(), opening, settled.thinks)

    def answer(self, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
        """The text after the thinking, without special tokens; empty where the thinking did not end."""
        raw = str(tokenizer.decode(list(tokens), skip_special_tokens=False)).lstrip()
        if self.ending in raw:
            return _without_special_tokens(raw.rpartition(self.ending)[2], tokenizer)
        if self.lead and raw.startswith(self.lead):
            return _without_special_tokens(raw.removeprefix(self.lead), tokenizer)
        if self.may and (self.opening == "" or (self.opening is not None and raw.startswith(self.opening))):
            return ""
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True))


def _end_of_turn(encoder: Encoder) -> int | None:
    """The token that the template writes after an answer; None where it writes ordinary text."""
    text = encoder.closing.lstrip()
    if not text:
        return None
    added = {*encoder.tokenizer.all_special_ids, *getattr(encoder.tokenizer, "added_tokens_decoder", {})}
    first = encoder.tokenizer(text, add_special_tokens=False)["input_ids"][:2]  # a word boundary may come first
    return next((token for token in first if token in added), None)
