"""Make the demo's base model: a small Llama that knows English and shares its concepts with other languages.

What a language can borrow from English depends on what the two share in the model. A small model trained from scratch
on separate texts shares nothing, and nothing transfers. This base is therefore made to share, in three steps:

1. English: a Llama of under a million weights reads every fact in English until it knows all of them.
2. Graft: each token of another language gets `keep` times the embedding of the English token that it translates, plus
   noise, plus one vector for its language. No token is shared with English, apart from some punctuation.
3. Joint text: a short phase of text in all languages. A language reads a share of the facts of the `text` split,
   depending on its tier, and its whole word list. Facts of `sft`, `dev` and `test` are read in English alone.

Results on such a base say nothing about how real models share. The base is an ordinary checkpoint
(`LlamaForCausalLM` with a `PreTrainedTokenizerFast`, one token per name).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cctuning.files import directory_atomically

ENGLISH = "en"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
FORMAT = 3  # part of the cache key: raise it when a change here makes another base of the same world and settings


@dataclasses.dataclass(frozen=True)
class Item:
    """A question in one language and its only right answer; `key` is the same in every language."""

    key: str
    task: str
    lang: str
    prompt: str
    prompt_en: str
    answer: str


class World(Protocol):
    """Text for a base, and parallel questions; `answer_tokens` is the length of the longest answer."""

    answer_tokens: int

    @property
    def languages(self) -> Mapping[str, Any]:
        """Languages by code, English first, each with a `tier`."""

    def vocabulary(self, lang: str) -> list[str]:
        """Every token of a language, in a fixed order."""

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """Token that English lacks -> language -> the English tokens it translates."""

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """The lines that the base reads in a language: all in English, else a share of the facts of `text`."""

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language, in the same order in all languages."""


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """How the base is made.

    Attributes:
        english_steps, learning_rate: of step 1. joint_steps, joint_learning_rate: of step 3.
        keep, noise, language_vector: of step 2, relative to the spread of the English embeddings.
        share: tier -> share of all facts that a language of it reads.
    """

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 384
    english_steps: int = 1500
    joint_steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    joint_learning_rate: float = 1e-3
    keep: float = 0.6
    noise: float = 0.5
    language_vector: float = 0.5
    share: tuple[tuple[str, float], ...] = (("high", 0.30), ("mid", 0.15), ("low", 0.05), ("reference", 1.0))
    seed: int = 0


def build_base(world: World, cache_dir: str | Path, config: BaseConfig | None = None, progress: bool = True) -> Path:
    """Return the base's directory under `cache_dir`; make it first if it is not there."""
    config = config or BaseConfig()
    place = Path(cache_dir) / f"base-{fingerprint(world, config)}"
    if not place.is_dir():
        model, tokenizer = _make(world, config, progress)
        with directory_atomically(place) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return place


def fingerprint(world: World, config: BaseConfig) -> str:
    """Hash of everything that decides the base: its text, vocabulary, settings, and torch's version."""
    senses = {token: {lang: sorted(words) for lang, words in by.items()} for token, by in world.senses().items()}
    content = {
        "format": FORMAT,
        "torch": torch.__version__,
        "config": dataclasses.asdict(config),
        "vocabulary": [world.vocabulary(lang) for lang in world.languages],
        "senses": senses,
        "text": base_text(world, config),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def base_text(world: World, config: BaseConfig) -> dict[str, list[str]]:
    """Language -> lines that the base reads in it."""
    share = dict(config.share)
    return {lang: world.text(lang, share[tongue.tier], config.seed) for lang, tongue in world.languages.items()}


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Build a tokenizer in which every template word and every name is one token, English's first.

    All are added tokens, so that the longest match from the left wins, with or without a space beside it: names of
    several words and scripts without spaces need that. Spaces themselves are no tokens.
    """
    core = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (UNKNOWN, PAD, EOS)])
    tokens = dict.fromkeys(token for lang in world.languages for token in world.vocabulary(lang))
    core.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _make(world: World, config: BaseConfig, progress: bool) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer, text = build_tokenizer(world), base_text(world, config)
    # English and the special tokens come first; no other token has an embedding yet.
    model = _new_model(tokenizer, config, len(world.vocabulary(ENGLISH)) + 3)
    pools = {lang: encode(lines, tokenizer) for lang, lines in text.items()}
    english = [pools[ENGLISH]]
    _train(
        model, english, config.english_steps, config.batch_size, config.learning_rate, config.seed, "English", progress
    )
    graft(model, world, tokenizer, config)
    seed, rate = config.seed + 2, config.joint_learning_rate
    _train(model, list(pools.values()), config.joint_steps, config.batch_size, rate, seed, "all languages", progress)
    return model.eval(), tokenizer


def _new_model(tokenizer: PreTrainedTokenizerFast, config: BaseConfig, tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def graft(model: LlamaForCausalLM, world: World, tokenizer: PreTrainedTokenizerFast, config: BaseConfig) -> None:
    """Make the embeddings of the other languages' tokens from English's (step 2); the head is tied to them."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    english = len(world.vocabulary(ENGLISH)) + 3
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.model.embed_tokens.weight
    size = weight[:english].std()

    def draw() -> Tensor:
        return torch.randn(weight.shape[1], generator=generator) * size

    vectors = {lang: config.language_vector * draw() for lang in world.languages}
    ids = tokenizer.get_vocab()
    for token, by_language in world.senses().items():
        senses = sorted({ids[sense] for found in by_language.values() for sense in found})
        concept = weight[senses].mean(dim=0) if senses else draw()
        owner = torch.stack([vectors[lang] for lang in by_language]).mean(dim=0)
        weight[ids[token]] = config.keep * concept + config.noise * draw() + owner


def encode(lines: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Return ids and labels (N, T) of lines, right-padded, each ending in the end-of-text token.

    Raises:
        ValueError: a line has words that no vocabulary lists.
    """
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(lines), add_special_tokens=False)["input_ids"]]
    for line, row in zip(lines, ids, strict=True):
        if tokenizer.unk_token_id in row:
            raise ValueError(f"tokenizer: {line!r} has words that are in no vocabulary")
    length = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids])
    return padded, padded.masked_fill(padded == tokenizer.pad_token_id, -100)


def _train(
    model: LlamaForCausalLM,
    pools: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    label: str,
    progress: bool,
) -> None:
    """Plain language modelling in float32; every batch takes the same number of lines of each pool."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, (steps - step) / max(1, steps - warm)))
    )
    each = max(1, batch_size // len(pools))
    width, pad = max(ids.shape[1] for ids, _ in pools), int(model.config.pad_token_id or 0)
    pools = [(_widen(ids, width, pad), _widen(labels, width, -100)) for ids, labels in pools]
    model.train()
    for _step in tqdm(range(steps), desc=f"base: {label}", unit="step", disable=not progress, mininterval=0.5):
        picks = [torch.randint(len(ids), (each,), generator=generator) for ids, _ in pools]
        ids = torch.cat([ids[pick] for (ids, _), pick in zip(pools, picks, strict=True)])
        labels = torch.cat([labels[pick] for (_, labels), pick in zip(pools, picks, strict=True)])
        longest = int((labels != -100).sum(dim=1).max())
        optimizer.zero_grad()
        # Padding is on the right and attention is causal, so no mask is needed: no token ever sees a pad.
        model(input_ids=ids[:, :longest], labels=labels[:, :longest], use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _widen(rows: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)
