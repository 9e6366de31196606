"""Tiny, randomly initialised models of each family with tokenizers of single letters, saved as users have them.

What they say means nothing; how they are told a language, batched and stopped is that of the real ones. A
setting of theirs makes an end likelier with every token, so that translations end, each after its own time.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

LETTERS = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, ".", "[", "]"]
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 1.0}


def save(model: PreTrainedModel, tokenizer: Any, directory: Path) -> Path:
    # a random model hardly ever ends: after two tokens its end becomes likelier with each
    model.generation_config.exponential_decay_length_penalty = (2, 1.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def nllb(directory: Path) -> Path:
    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *LETTERS])}
    codes = ["eng_Latn", "swh_Latn", "zho_Hans", "zho_Hant"]
    tokenizer = NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=codes, model_max_length=256)
    return save(_m2m100(len(tokenizer)), tokenizer, directory)


def _m2m100(size: int) -> M2M100ForConditionalGeneration:
    torch.manual_seed(0)
    config = M2M100Config(vocab_size=size, max_position_embeddings=512, decoder_start_token_id=2, **SIZES)
    return M2M100ForConditionalGeneration(config)


def m2m100(directory: Path) -> Path:
    """With the library's own tokenizer, which needs sentencepiece."""
    from transformers import M2M100Tokenizer

    directory.mkdir(parents=True)
    spm = _sentencepiece(directory / "sentencepiece.bpe.model")
    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *LETTERS])}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = M2M100Tokenizer(str(directory / "vocab.json"), str(spm))
    size = len(vocab) + len(tokenizer.lang_token_to_id)
    return save(_m2m100(size), tokenizer, directory)


def madlad(directory: Path) -> Path:
    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=["<2en>", "<2sw>", "<2zh>"])
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, initializer_factor=4.0
    )
    config.decoder_start_token_id = 0
    return save(T5ForConditionalGeneration(config), tokenizer, directory)


def opus(directory: Path, targets: tuple[str, ...] = (), stated: tuple[str, str] | None = None) -> Path:
    """With a plain fast tokenizer, as some converted Opus-MT models have."""
    tokens = ["</s>", "<unk>", "<pad>", *(f">>{target}<<" for target in targets), *LETTERS]
    core = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([f">>{target}<<" for target in targets])
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    names = {"source_lang": stated[0], "target_lang": stated[1]} if stated else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=256, **names
    )
    return save(_marian(len(tokens)), tokenizer, directory)


def opus_sentencepiece(directory: Path) -> Path:
    """With the library's own tokenizer, which needs sentencepiece."""
    from transformers import MarianTokenizer

    directory.mkdir(parents=True)
    spm = _sentencepiece(directory / "source.spm")
    (directory / "target.spm").write_bytes(spm.read_bytes())
    tokens = ["</s>", "<unk>", ">>swh<<", ">>eng<<", *LETTERS, "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    tokenizer = MarianTokenizer(
        str(spm), str(directory / "target.spm"), str(directory / "vocab.json"), source_lang="mul", target_lang="mul"
    )
    return save(_marian(len(tokens), pad=len(tokens) - 1), tokenizer, directory)


def _marian(size: int, pad: int = 2) -> MarianMTModel:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=size,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        **SIZES,
    )
    model = MarianMTModel(config)
    model.generation_config.forced_eos_token_id = 0  # as in the real ones
    return model


def _sentencepiece(path: Path) -> Path:
    """A model of single letters, written by sentencepiece itself."""
    import sentencepiece

    lines = path.with_suffix(".txt")
    lines.write_text("\n".join([" ".join(string.ascii_letters), " ".join(string.digits + ".[]")] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(path.with_suffix("")),
        model_type="char",
        vocab_size=70,
        hard_vocab_limit=False,
    )
    path.with_suffix(".model").rename(path)
    return path
