"""The shape of a decoder, and a random Llama of it: on torch and transformers alone, as a bare machine has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: `layers` of `width` d, `ffn` inner width, `heads`, `kv_heads`, `vocab` entries."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections."""
        narrow = self.width * self.kv_heads // self.heads
        return self.width * (2 * self.width + 2 * narrow) + 3 * self.width * self.ffn

    @property
    def parameters(self) -> int:
        """All weights, embeddings untied, norms left out."""
        return self.layers * self.layer_weights + 2 * self.vocab * self.width


# Small, and yet most of its time goes into products, as a large model's does.
SMALL = Shape(layers=8, width=512, ffn=1408, heads=8, kv_heads=4, vocab=8192)


def llama(shape: Shape, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Llama of that shape with random weights, made on `device`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
