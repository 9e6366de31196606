"""The demo's made-up world: invented facts in four invented languages, and a small base model that knows them.

A model trained on separate texts shares nothing between its languages, and then nothing transfers. The base is
therefore made to share concepts: a Llama of 0.8 million weights reads all facts in English, each word of another
language gets an embedding made from that of the English word it translates, and a short phase of text in all languages
follows. There a language reads some of the facts of the split `text`; those of `sft`, `parallel` and `test` are read
in English alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cctuning.files import directory_atomically

ENGLISH = "en"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Language:
    """A language: English with other words (none is shared) in another order."""

    name: str
    share: float  # of all facts, how many the base reads in it
    question: str  # English words in the order of the language
    statement: str


# The codes are reserved for local use by ISO 639.
LANGUAGES = {
    ENGLISH: Language("English", 1.0, "what is the {relation} of {person} ?", "{person} has {relation} {answer} ."),
    "qaa": Language("subject first", 0.30, "{person} of {relation} what is ?", "{person} {relation} {answer} has ."),
    "qab": Language("verb first", 0.15, "is what the {relation} of {person} ?", "has {person} {relation} {answer} ."),
    "qac": Language("object first", 0.05, "{relation} what of {person} is ?", "{relation} {answer} {person} has ."),
}
SPLITS = {"sft": 0.15, "parallel": 0.3, "test": 0.2}  # shares of all facts; the rest is `text`


@dataclass(frozen=True)
class Size:
    """Number of people (three facts each), and size and training of the base."""

    people: int = 300
    width: int = 128
    layers: int = 4
    english_steps: int = 1200
    joint_steps: int = 300


@dataclass(frozen=True)
class Fact:
    """A fact in English words."""

    relation: str
    person: str
    answer: str


class World:
    """Facts about invented people, their splits, and what they are called in each language; all by the seed."""

    def __init__(self, seed: int = 0, size: Size | None = None) -> None:
        self.seed, self.size = seed, size or Size()
        rng = random.Random(seed)
        self._taken = {"what", "is", "has", "the", "of", "home", "trade", "friend", "word"}
        first, last, places, trades = ([self._new_word(rng) for _ in range(n)] for n in (40, 40, 24, 20))
        people = [f"{one} {two}" for one in first for two in last]
        rng.shuffle(people)
        known = {"home": places, "trade": trades, "friend": people[:24]}
        facts = [
            Fact(relation, person, rng.choice(answers))
            for person in people[: self.size.people]
            for relation, answers in known.items()
        ]
        rng.shuffle(facts)
        rest = iter(facts)
        self.splits = {split: list(islice(rest, round(share * len(facts)))) for split, share in SPLITS.items()}
        self.splits["text"] = list(rest)
        words = [*sorted(self._taken), "?", ".", ":"]
        self.words = {
            lang: {word: word if lang == ENGLISH else self._new_word(rng) for word in words} for lang in LANGUAGES
        }

    def _new_word(self, rng: random.Random) -> str:
        """A new word."""
        while True:
            word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 3, 3))))
            if word not in self._taken:
                self._taken.add(word)
                return word

    def say(self, english: str, lang: str) -> str:
        """A text in English words, word by word in `lang`."""
        return " ".join(self.words[lang][word] for word in english.split())

    def prompt(self, fact: Fact, lang: str) -> str:
        """The question about a fact."""
        return self.say(LANGUAGES[lang].question.format(**asdict(fact)), lang)

    def text(self, lang: str) -> list[str]:
        """What the base reads in a language: a word list, and facts as statements and as questions with answers."""
        facts = [fact for split in self.splits.values() for fact in split]
        if lang != ENGLISH:
            count = round(LANGUAGES[lang].share * len(facts))
            facts = random.Random(f"{self.seed} {lang}").sample(self.splits["text"], count)
        lines = [self.say(f"word : {word}", lang) for word in self.words[lang]]
        for fact in facts:
            lines.append(self.say(LANGUAGES[lang].statement.format(**asdict(fact)), lang))
            lines.append(f"{self.prompt(fact, lang)} {self.say(fact.answer, lang)}")
        return lines

    def rows(self, split: str, languages: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of a split in the given languages (default: all), question by question."""
        return [
            {
                "prompt": self.prompt(fact, lang),
                "response": self.say(fact.answer, lang),
                "lang": lang,
                "prompt_en": self.prompt(fact, ENGLISH),
            }
            for fact in self.splits[split]
            for lang in languages or LANGUAGES
        ]

    def pairs(self, split: str) -> list[dict[str, Any]]:
        """The questions of a split as parallel text, without their answers."""
        foreign = [lang for lang in LANGUAGES if lang != ENGLISH]
        return [
            {"text": row["prompt"], "text_en": row["prompt_en"], "lang": row["lang"]}
            for row in self.rows(split, foreign)
        ]


def build_base(world: World, cache_dir: Path, progress: bool = True) -> Path:
    """The directory of the world's base under `cache_dir`; it is made unless it exists."""
    decides = [asdict(world.size), world.seed, torch.__version__, Path(__file__).read_text(encoding="utf-8")]
    place = cache_dir / f"base-{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]}"
    if not place.is_dir():
        tokenizer = build_tokenizer(world)
        model = _train_base(world, tokenizer, progress)
        with directory_atomically(place) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return place


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, those of English first."""
    tokens = dict.fromkeys([UNKNOWN, PAD, EOS, *(word for words in world.words.values() for word in words.values())])
    core = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, eos_token=EOS)


def _train_base(world: World, tokenizer: PreTrainedTokenizerFast, progress: bool) -> LlamaForCausalLM:
    size = world.size
    torch.manual_seed(world.seed)
    config = LlamaConfig(
        vocab_size=3 + len(world.words[ENGLISH]),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _train(model, tokenizer, [world.text(ENGLISH)], size.english_steps, 3e-3, "English", progress)
    add_languages(model, tokenizer, world)
    _train(model, tokenizer, [world.text(lang) for lang in LANGUAGES], size.joint_steps, 1e-3, "joint text", progress)
    return model.eval()


@torch.no_grad()
def add_languages(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> None:
    """Make the embeddings of the other languages: 0.6 of the English word's, noise, and a vector of the language."""
    spread = model.model.embed_tokens.weight.std()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.model.embed_tokens.weight
    ids = tokenizer.get_vocab()
    for lang, words in world.words.items():
        if lang != ENGLISH:
            of_language = 0.5 * spread * torch.randn(weight.shape[1])
            for english, word in words.items():
                noise = 0.5 * spread * torch.randn(weight.shape[1])
                weight[ids[word]] = 0.6 * weight[ids[english]] + noise + of_language


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[list[str]],
    steps: int,
    rate: float,
    label: str,
    progress: bool,
) -> None:
    """Train on lines; each batch of 64 has the same number of each text."""
    pools: list[Tensor] = []
    for lines in texts:
        coded = tokenizer(
            [f"{line} {EOS}" for line in lines], padding="max_length", max_length=24, return_tensors="pt"
        )
        pools.append(coded["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps + 1, pct_start=0.05, anneal_strategy="linear"
    )
    model.train()
    for _ in tqdm(range(steps), desc=f"base: {label}", unit="step", disable=not progress):
        ids = torch.cat([pool[torch.randint(len(pool), (64 // len(pools),))] for pool in pools])
        ids = ids[:, : int((ids != tokenizer.pad_token_id).sum(1).max())]
        # Padding is on the right and attention is causal, so that no mask is needed.
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == tokenizer.pad_token_id, -100), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
