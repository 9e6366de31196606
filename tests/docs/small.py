"""A small model that reads any text: what the tests of README and notebook run on."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def small_model(directory: Path) -> Path:
    """A random Llama with a byte-level tokenizer of the notebook's own text."""
    lines = [json.loads(line) for path in NOTEBOOKS.glob("data/*.jsonl") for line in path.open(encoding="utf-8")]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([line.get("prompt") or line["text"] for line in lines], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=0, **size)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
