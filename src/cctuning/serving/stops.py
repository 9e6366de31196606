"""Where an answer ends: the eos token, and what the chat template writes after an answer where that is another mark.

A model is trained to write what its template writes (`<|im_end|>`, `<end_of_turn>`); a base model's generation config
knows its eos token alone, and generation would run on into turns that nobody asked for.
"""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cctuning.data import Encoder


def stop_tokens(encoder: Encoder, model: PreTrainedModel) -> list[int]:
    """Ids at which generation ends: the model's own, the tokenizer's eos, and the template's end of turn."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [own] if isinstance(own, int) else list(own or [])
    mark = _mark(encoder)
    for token in (encoder.tokenizer.eos_token_id, mark):
        if isinstance(token, int) and token not in ids:
            ids.append(token)
    return ids


def stop_text(encoder: Encoder) -> str | None:
    """The template's end of turn, where it is ordinary text and no token of its own."""
    return encoder.closing.strip() or None if _mark(encoder) is None else None


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
