"""Rows of the lab's worlds, made up here, and a base of a few thousand weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

LABELS = ("geography", "health", "sports")
TEXT = [
    "the river runs by the old town",
    "the doctor saw the sick child",
    "the team won the last game",
    "mto unapita karibu na mji",
    "daktari alimwona mtoto mgonjwa",
    "timu ilishinda mchezo wa mwisho",
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the public one, of SIB-200 in two languages and a little general text."""
    folder = tmp_path / "data"
    for lang, start in (("en", 0), ("sw", 3)):
        rows = []
        for number in range(18):
            split = ("train", "train", "train", "dev", "test", "test")[number // 3]
            row = {"id": number, "split": split, "lang": lang, "response": LABELS[number % 3]}
            row["prompt"] = f"{TEXT[start + number % 3]} {number}"
            rows.append(row if lang == "en" else {**row, "prompt_en": f"{TEXT[number % 3]} {number}"})
        write(folder / f"benchmarks/sib200/{lang}.jsonl.gz", rows)
    tico = [{"id": str(n), "lang": "sw", "text": TEXT[3 + n % 3], "text_en": TEXT[n % 3]} for n in range(6)]
    write(folder / "parallel/tico19/sw.jsonl.gz", tico)
    monkeypatch.setenv("CC_TUNING_DATA", str(folder))
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    return folder


def write(path: Path, rows: list[dict]) -> None:
    """As gzip JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a byte-fallback BPE as Gemma's is built, of more tokens than any test needs."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    numbers = [str(number) for number in range(300)]
    tokenizer.train_from_iterator([*TEXT, *LABELS, "English: unused words that no row has", *numbers] * 3, trainer)
    for token in special[4:]:  # a byte is a token of the vocabulary, not one that is looked for in the text
        assert tokenizer.token_to_id(token) is not None
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    size = tokenizer.get_vocab_size()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder
