"""Where an answer ends: the eos token, and what the chat template writes after an answer where that is another mark.

A model is trained to write what its template writes (`<|im_end|>`, `<end_of_turn>`); a base model's generation config
knows its eos token alone, and generation would run on into turns that nobody asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cctuning.data import Encoder
from cctuning.errors import UserError


def stop_tokens(encoder: Encoder, model: PreTrainedModel) -> list[int]:
    """Ids at which generation ends: the model's own, the tokenizer's eos, and the template's end of turn."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [own] if isinstance(own, int) else list(own or [])
    mark = _mark(encoder)
    for token in (encoder.tokenizer.eos_token_id, mark):
        if isinstance(token, int) and token not in ids:
            ids.append(token)
    return ids


def generation_config(encoder: Encoder, model: PreTrainedModel) -> GenerationConfig:
    """The model's own generation config, ending where training did: servers stop where this file says.

    The end of turn that is ordinary text (`stop_text`) is not in it: `generate` would refuse to run without being
    handed a tokenizer.

    Raises:
        UserError: the model's own contradicts itself, and transformers would not save it.
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
        where = model.config.name_or_path or "the base"
        raise UserError(f"generation_config.json of {where}: transformers refuses it ({error}); mend it.") from error
    return config


def stop_text(encoder: Encoder) -> str | None:
    """The template's end of turn, where it is ordinary text and no token of its own."""
    return encoder.closing.strip() or None if _mark(encoder) is None else None


def answer_end(encoder: Encoder) -> str | None:
    """What an answer's text is cut at: the template's end of turn, which stays in it where it is no special token."""
    mark = _mark(encoder)
    return stop_text(encoder) if mark is None else str(encoder.tokenizer.decode([mark]))


@dataclass(frozen=True)
class Thoughts:
    """How to tell what a model thought from its answer, by what the template writes around the two.

    Attributes:
        ending: between them.
        lead: before an answer without thinking.
        opening: before a thought; empty where the prompt has opened it; None where that is not known.
        may: the prompt leaves it to the model to think.
    """

    ending: str
    lead: str
    opening: str | None
    may: bool

    @classmethod
    def of(cls, encoder: Encoder) -> Thoughts | None:
        """None where the template knows no thinking."""
        settled = encoder.settled
        if settled is None or not settled.ending or not settled.ending.strip():
            return None
        opening = None if settled.opening is None else settled.opening.strip()
        return cls(settled.ending.strip(), settled.lead.strip(), opening, settled.thinks)

    def answer(self, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of what a model wrote after its thinking, without special tokens; empty where that had no end."""
        row = list(tokens)
        raw = str(tokenizer.decode(row, skip_special_tokens=False)).lstrip()
        if self.ending in raw:
            return _plain(raw.rpartition(self.ending)[2], tokenizer)
        if self.lead and raw.startswith(self.lead):
            return _plain(raw.removeprefix(self.lead), tokenizer)
        if self.may and (self.opening == "" or (self.opening is not None and raw.startswith(self.opening))):
            return ""
        return str(tokenizer.decode(row, skip_special_tokens=True))


def _plain(raw: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text without the special tokens in it."""
    return str(tokenizer.decode(tokenizer.encode(raw, add_special_tokens=False), skip_special_tokens=True))


def _mark(encoder: Encoder) -> int | None:
    """The first token of the template's closing, white space aside, if it was added to the vocabulary as a mark."""
    text = encoder.closing.lstrip()
    if not text:
        return None
    first = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = _marks(encoder.tokenizer)
    return next((token for token in first[:2] if token in marks), None)  # before it, at most a bare word boundary


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
