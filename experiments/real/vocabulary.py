"""Cut a checkpoint to the tokens of given texts: the same tokens with new ids, at a fraction of the size.

Two thirds of Gemma 3 270M are rows of its embedding that a given set of texts never touches. The texts are tokenised
as before: byte-pair merging takes the best pair there is, so a vocabulary that keeps every piece that was made on the
way to a kept token makes the same choices.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from cctuning.errors import UserError

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
BATCH = 4096


def used_tokens(folder: Path, texts: Sequence[str]) -> list[int]:
    """Return the ids of the tokens of `texts` and of the special tokens, ascending."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    found = {vocabulary[config[name]] for name in SPECIAL if config.get(name) in vocabulary}
    template = folder / "chat_template.jinja"
    if template.is_file():
        text = template.read_text()
        found |= {ids for token, ids in vocabulary.items() if token.startswith("<|") and token in text}
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(list(texts[start : start + BATCH])):
            found.update(encoding.ids)
    return sorted(found)


def with_pieces(folder: Path, kept: Sequence[int]) -> list[int]:
    """Return `kept` with every piece that leads to one of those tokens, so that any text can be read."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary: dict[str, int] = model["vocab"]
    words = {number: token for token, number in vocabulary.items()}
    ranks = {(first, second): rank for rank, (first, second) in enumerate(model["merges"])}
    made = {piece for number in kept if number in words for piece in _steps(words[number], ranks)}
    return sorted({*kept, *(vocabulary[piece] for piece in made if piece in vocabulary)})


def cut_checkpoint(folder: Path, kept: Sequence[int], target: Path, check: Sequence[str]) -> None:
    """Write the checkpoint of `folder` with only the tokens `kept` into `target`.

    Args:
        kept: ids that stay, ascending; the new id is the place among them.
        check: texts that must come out as the same tokens.
    """
    config = json.loads((folder / "config.json").read_text())
    if not config["tie_word_embeddings"]:
        raise UserError(f"{folder}: input and output embeddings are not tied; only tied ones can be cut.")
    place = {old: new for new, old in enumerate(kept)}
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = weights[name][torch.tensor(kept)].clone()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config["vocab_size"] = len(kept)
    _write(target / "config.json", _renamed(config, place))
    generation = folder / "generation_config.json"
    if generation.is_file():
        _write(target / generation.name, _renamed(json.loads(generation.read_text()), place))
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    _write(target / "tokenizer.json", _cut_tokenizer(whole, place))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    wanted = {name: told[name] for name in SPECIAL if name in told}
    _write(target / "tokenizer_config.json", {**wanted, "tokenizer_class": "PreTrainedTokenizerFast"})
    template = folder / "chat_template.jinja"
    if template.is_file():
        (target / template.name).write_text(template.read_text())
    _check(folder, target, place, check)


def _renamed(config: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    names = [name for name in config if name.endswith("_token_id")]
    return {**config, **{name: place.get(config[name]) for name in names}}


def _cut_tokenizer(whole: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """The tokenizer's JSON with `place` alone, and after it the pieces that lead to those tokens.

    Pieces that are not kept have ids past the model's: no text of the cut ends in one (`_check`), and another text
    that does is an error of the embedding (index out of range) rather than read as something else.
    """
    model = whole["model"]
    vocabulary: dict[str, int] = model["vocab"]
    words = {number: token for token, number in vocabulary.items()}
    ranks = {(first, second): rank for rank, (first, second) in enumerate(model["merges"])}
    made: set[str] = set()
    for old in place:
        if old in words:
            made |= _steps(words[old], ranks)
    new = {words[old]: number for old, number in place.items() if old in words}
    free = len(place)
    for piece in sorted(made - new.keys(), key=lambda piece: vocabulary.get(piece, 0)):
        if piece in vocabulary:
            new[piece] = free
            free += 1
    merges = [pair for pair in model["merges"] if pair[0] in new and pair[1] in new and "".join(pair) in new]
    added = [{**one, "id": new[one["content"]]} for one in whole["added_tokens"] if one["content"] in new]
    result = {**whole, "added_tokens": added, "model": {**model, "vocab": new, "merges": merges}}
    processor = json.loads(json.dumps(whole.get("post_processor")))
    for special in (processor or {}).get("special_tokens", {}).values():
        special["ids"] = [new[token] for token in special["tokens"]]
    result["post_processor"] = processor
    return result


def _steps(word: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """Return every piece that byte-pair merging makes on the way from the characters of `word` to it."""
    pieces, seen = list(word), set(word)
    while len(pieces) > 1:
        best = min(range(len(pieces) - 1), key=lambda i: ranks.get((pieces[i], pieces[i + 1]), len(ranks)))
        if (pieces[best], pieces[best + 1]) not in ranks:
            break
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        seen.add(pieces[best])
    return seen


def _check(folder: Path, target: Path, place: dict[int, int], texts: Iterable[str]) -> None:
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    after = Tokenizer.from_file(str(target / "tokenizer.json"))
    asked = list(texts)
    for start in range(0, len(asked), BATCH):
        some = asked[start : start + BATCH]
        for text, old, new in zip(some, before.encode_batch(some), after.encode_batch(some), strict=True):
            if [place.get(number) for number in old.ids] != new.ids:
                raise UserError(
                    f"{target}: the cut tokenizer gives other tokens for {text[:60]!r} than the whole one."
                )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
