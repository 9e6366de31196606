"""The demo's base model: English first, other languages grafted on, so that they share concepts by construction.

What the connection can carry over depends on what the base's languages share. A small model trained from nothing on
separate texts shares nothing, and nothing transfers; so this base is *made* to share, in three steps:

1. *English*: a Llama of under a million weights (before the other languages' tokens) reads every fact in English until
   it knows them all.
2. *Graft*: each token of another language gets `keep` times the embedding of the English token it translates, plus
   noise, plus one vector for its language. Its tokens are its own (but for `?`, `:` and the like); only the concepts
   are English's.
3. *Joint text*: a short while of English and the other languages together. A language reads a share of the facts of
   the `text` split (by its tier: high, mid, low), and all of its own dictionary; `sft`, `dev` and `test` facts stay
   English-only.

With `emergent`, sharing is left to emerge: one model reads all languages from the first step, with parallel lines and
English lines in which words of another language stand for English ones; nothing is grafted.

So a grafted base is no evidence about how real models share; it is a place where a method that needs sharing can be
watched at work. The result is an ordinary checkpoint: `LlamaForCausalLM` and `PreTrainedTokenizerFast`, one token a
name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cctuning.demo.subwords import EOS, PAD, UNKNOWN, pack, positions_of, train_tokenizer
from cctuning.demo.worlds import ENGLISH, World

EMERGENT, SUBWORDS = ("emergent", "switched", "switched_lists"), ("vocab", "positions")
GRAFT = ("joint_steps", "joint_learning_rate", "keep", "noise", "language_vector", "share")
AFTER_ENGLISH = (*GRAFT, *EMERGENT, *SUBWORDS)
PARTS = 2  # of a batch of an emergent base, whose parallel lines are twice as long as the others
FORMAT = 2  # part of the cache's key: raise it when this file makes another base of the same world and settings


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """How the base is made; `share` is the part of all facts that a language of each tier reads in its own text.

    Attributes:
        emergent: no graft; `english_steps` steps of everything at once, half of each batch English.
        switched: where emergent, code-switched versions of each line that a language reads.
        switched_lists: where emergent, code-switched versions of the word list, which tells of nothing asked.
        vocab: tokens of a byte-level BPE trained on what is read, where emergent: for worlds of real text, whose lines
            are packed into rows of `positions` tokens, `batch_size` of them a step. 0: one token a word of the world.
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
    share: tuple[tuple[str, float], ...] = (("high", 0.30), ("mid", 0.15), ("low", 0.05))
    emergent: bool = False
    switched: int = 4
    switched_lists: int = 0
    vocab: int = 0
    positions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab and not self.emergent:
            raise ValueError("vocab: a graft needs one token a word; expected emergent with it")


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer for which every template word and every name is one token, English's first.

    All are added tokens: the longest one that starts leftmost wins, with or without a space beside it, which is what
    names of several words and scripts without spaces need. Spaces themselves carry nothing.
    """
    core = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (UNKNOWN, PAD, EOS)])
    tokens = dict.fromkeys(token for lang in world.languages for token in world.vocabulary(lang))
    core.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.padding_side = "right"
    return tokenizer


@torch.no_grad()
def graft(model: LlamaForCausalLM, world: World, tokenizer: PreTrainedTokenizerFast, config: BaseConfig) -> None:
    """Give the tokens of the other languages embeddings made of English's (step 2 above); the head is tied to them."""
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


def joint_text(world: World, config: BaseConfig) -> dict[str, list[str]]:
    """What each language reads in the joint phase: English everything, others their share of the `text` split."""
    share = {**dict(config.share), "reference": 1.0}
    text = {lang: world.text(lang, share[tongue.tier], config.seed) for lang, tongue in world.languages.items()}
    if config.emergent:
        for lang, tongue in world.languages.items():
            if lang != ENGLISH:
                told = (lang, share[tongue.tier], config.seed)
                text[lang] += world.parallel_text(*told) + world.switched_text(*told, config.switched)
                text[lang] += world.switched_list(lang, config.seed, config.switched_lists)
    return text


def encode(lines: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Lines as ids and labels (N, T), right-padded, each ending in the end-of-text token."""
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(lines), add_special_tokens=False)["input_ids"]]
    if any(tokenizer.unk_token_id in row for row in ids):
        line = next(line for line, row in zip(lines, ids, strict=True) if tokenizer.unk_token_id in row)
        raise ValueError(f"tokenizer: {line!r} has words that no glossary lists")
    length = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids])
    return padded, padded.masked_fill(padded == tokenizer.pad_token_id, -100)


def train(
    model: LlamaForCausalLM,
    pools: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    label: str,
    progress: bool,
    parts: int = 1,
    packed: bool = False,
) -> float:
    """Plain language modelling; every batch takes the same number of lines of each pool. Returns the last loss.

    In float32 on a CPU, under bfloat16 autocast where the model is on a GPU.

    Args:
        parts: a batch is gone through in so many parts of like length: the same step with less padding, but another
            order of summing, so bases made before stay as they are with one.
        packed: the rows are of `pack`.
    """
    generator = torch.Generator().manual_seed(seed)
    device, eos = model.device, cast(int, model.config.eos_token_id)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, (steps - step) / max(1, steps - warm)))
    )
    each = max(1, batch_size // len(pools))
    width = max(ids.shape[1] for ids, _ in pools)
    pad = int(model.config.pad_token_id or 0)
    pools = [(_widen(ids, width, pad), _widen(labels, width, -100)) for ids, labels in pools]
    model.train()
    loss = torch.tensor(float("nan"))
    for _step in tqdm(range(steps), desc=label, unit="step", disable=not progress, mininterval=0.5):
        picks = [torch.randint(len(ids), (each,), generator=generator) for ids, _ in pools]
        ids = torch.cat([ids[pick] for (ids, _), pick in zip(pools, picks, strict=True)])
        labels = torch.cat([labels[pick] for (_, labels), pick in zip(pools, picks, strict=True)])
        lengths, scored = (labels != -100).sum(dim=1), (labels[:, 1:] != -100).sum()
        optimizer.zero_grad()
        loss = torch.zeros(())
        for part in lengths.argsort().chunk(parts) if parts > 1 else [slice(None)]:
            # Padding is on the right and attention is causal, so no mask is needed: no real token ever sees a pad.
            some, longest = labels[part], int(lengths[part].max())
            with autocast:
                told = {"input_ids": ids[part, :longest].to(device), "labels": some[:, :longest].to(device)}
                if packed:
                    told["position_ids"] = positions_of(told["input_ids"], eos)
                own = model(**told, use_cache=False).loss
            own = own * ((some[:, 1:] != -100).sum() / scored)
            own.backward()
            loss = loss + own.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return float(loss)


def _widen(rows: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)


def new_model(tokenizer: PreTrainedTokenizerFast, config: BaseConfig, tokens: int) -> LlamaForCausalLM:
    """A model of the first `tokens` tokens, before its first step."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learn_english(
    world: World, tokenizer: PreTrainedTokenizerFast, config: BaseConfig, cache: Path | None, progress: bool
) -> LlamaForCausalLM:
    """Step 1, kept by content in `cache`: bases that differ only in what comes after it share it."""
    text = world.text(ENGLISH, 1.0, config.seed)
    told = {name: value for name, value in dataclasses.asdict(config).items() if name not in AFTER_ENGLISH} | {
        "torch": torch.__version__,
        "format": FORMAT,
        "text": text,
        "tokens": len(world.vocabulary(ENGLISH)),
    }
    place = cache / f"english-{_hash(told)}" if cache else None
    if place and (place / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(place)
    # English and the special tokens come first: no other token has a row yet.
    model = new_model(tokenizer, config, len(world.vocabulary(ENGLISH)) + 3)
    shared = (config.batch_size, config.learning_rate, config.seed)
    train(model, [encode(text, tokenizer)], config.english_steps, *shared, "base 1/2: English", progress)
    if place:
        _appear(place, model.save_pretrained)
    return model


def make_base(
    world: World, config: BaseConfig, progress: bool, cache: Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The three steps; `cache`: a directory for the first."""
    text = joint_text(world, config)
    shared = (config.batch_size, config.learning_rate, config.seed)
    if config.vocab:
        tokenizer = train_tokenizer(itertools.chain(*text.values()), config.vocab)
        packs = {lang: pack(lines, tokenizer, config.positions, config.seed) for lang, lines in text.items()}
        model = new_model(tokenizer, config, len(tokenizer))
        if torch.accelerator.is_available():  # the other bases are small, and made on a CPU wherever one is
            module: Any = model  # transformers wraps `to`, and loses its signature
            module.to(torch.accelerator.current_accelerator())
        label = "base: real text, all languages"
        mixed = [*packs.values(), packs[ENGLISH]]  # parallel lines are half English besides
        train(model, mixed, config.english_steps, *shared, label, progress, packed=True)
        model.cpu().eval()
        return model, tokenizer
    tokenizer = build_tokenizer(world)
    pools = {lang: encode(lines, tokenizer) for lang, lines in text.items()}
    if config.emergent:
        model = new_model(tokenizer, config, len(tokenizer))
        balanced = [*pools.values(), *[pools[ENGLISH]] * (len(pools) - 2)]
        train(model, balanced, config.english_steps, *shared, "base: all languages", progress, parts=PARTS)
    else:
        model = learn_english(world, tokenizer, config, cache, progress)
        graft(model, world, tokenizer, config)
        shared = (config.batch_size, config.joint_learning_rate, config.seed + 2)
        train(model, list(pools.values()), config.joint_steps, *shared, "base 2/2: all languages", progress)
    model.eval()
    return model, tokenizer


def fingerprint(world: World, config: BaseConfig) -> str:
    """Hash of all that decides the base: what is read, how it is grafted, settings, torch's version, this format."""
    content = {
        "format": FORMAT,
        "torch": torch.__version__,
        # Options added since are named only where they are set: bases made before keep their place.
        "config": {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if (name not in EMERGENT or config.emergent) and (name not in SUBWORDS or config.vocab)
        },
        "vocabulary": [world.vocabulary(lang) for lang in world.languages],
        "senses": {token: {lang: sorted(words) for lang, words in by.items()} for token, by in world.senses().items()},
        "text": joint_text(world, config),
    }
    return _hash(content)


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def build_base(world: World, cache_dir: str | Path, config: BaseConfig | None = None, progress: bool = True) -> Path:
    """The base's directory under `cache_dir`, made where it is missing: two to three minutes once, then nothing."""
    config = config or BaseConfig()
    place = Path(cache_dir) / f"base-{fingerprint(world, config)}"
    if (place / "config.json").exists():
        return place
    model, tokenizer = make_base(world, config, progress, Path(cache_dir))

    def write(draft: Path) -> None:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "base.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n", encoding="utf-8")

    _appear(place, write)
    return place


def _appear(place: Path, write: Callable[[Path], None]) -> None:
    """Make the directory `place` whole or not at all: written beside its place and renamed into it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".base-", dir=place.parent))
    try:
        write(draft)
        draft.chmod(0o755)
        try:
            os.rename(draft, place)
        except OSError:  # another process made the same meanwhile: it has the same content
            if not (place / "config.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
