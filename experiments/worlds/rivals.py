"""Rivals of the source's tables that are not a connection: what they are given, and `xtune` (`mad-x`: mad_x.py).

`xtune` (Zheng et al. 2021, arXiv 2106.08226) asks that a row's answer be predicted alike from its prompt and from a
noised version of it. Its own code, like that of `mad-x`, is for encoders and for libraries of their day; here both are
built on the trainer, transformers and PEFT of every other recipe, and where they differ from the papers is said.

They train or answer in ways of their own, so each is one function from a `Job` to answers, which `cells.py` calls in
place of `cctuning train`; rows, batches, schedule and scoring are those of every other recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from cctuning.connection import ConnectionConfig
from cctuning.demo.base import BaseConfig
from cctuning.demo.tuning import OF_TRAINER, options, right
from cctuning.demo.worlds import World
from cctuning.model.loading import Loaded, load_base, load_tokenizer
from cctuning.training import CCConfig, CCTrainer

Answers = dict[str, list[bool]]  # language -> which questions were answered right
NOISES = ("switched", "translated", "gaussian")
COIN = 0.5  # chance of a word of `switched` to be said in English
SPREAD = 0.5  # standard deviation of `gaussian`, as a share of that of the embeddings


@dataclass(frozen=True)
class Job:
    """What a rival is given.

    Attributes:
        base: the base's directory. config: how it was made. rows: to train on. settings: the recipe's method and its
            search's choice. split: to answer. scratch: a directory of its own. trained: the setup's options of the
            trainer.
    """

    base: Path
    config: BaseConfig
    world: World
    rows: list[dict[str, Any]]
    settings: Mapping[str, Any]
    split: str
    seed: int
    scratch: Path
    trained: Mapping[str, Any] = field(default_factory=dict)

    def args(self, name: str) -> CCConfig:
        """The trainer's options, those of every recipe."""
        trainer = {option: value for option, value in self.settings.items() if option in OF_TRAINER}
        args = options(self.base, self.scratch, self.scratch / name, trainer, self.seed, self.trained)[2]
        args.disable_tqdm = True
        return args


Rival = Callable[[Job], tuple[int, Answers]]  # tokens read, and the answers


def tokens_read(trainer: SFTTrainer) -> int:
    """As the trainer counts them."""
    return int(max(entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry))


def symmetric_kl(one: Tensor, two: Tensor) -> Tensor:
    """KL(one || two) + KL(two || one) of rows of logits (N, V), mean over N.

    As the paper has it, each side's gradient stops where it is the target.
    """
    p, q = one.float().log_softmax(-1), two.float().log_softmax(-1)

    def kl(target: Tensor, given: Tensor) -> Tensor:
        return nn.functional.kl_div(given, target.detach(), reduction="batchmean", log_target=True)

    return kl(p, q) + kl(q, p)


def english_of(world: World, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(V,) each token's English translation (the first of several), itself where it has none."""
    ids = tokenizer.get_vocab()
    table = torch.arange(len(tokenizer))
    for token, by_language in world.senses().items():
        senses = sorted(sense for found in by_language.values() for sense in found)
        if senses:
            table[ids[token]] = ids[senses[0]]
    return table


class XTuneTrainer(CCTrainer):
    """Plain SFT and `weight` x the symmetric KL between what the response's tokens are predicted from.

        L = L_SFT(x, y) + weight * (KL(sg p(y | x) || p(y | x')) + KL(sg p(y | x') || p(y | x)))

    x' is the prompt x noised by `noise`: `switched` (each word said in English at the toss of a coin), `translated`
    (the English parallel prompt), `gaussian` (noise on the embeddings; the only one that English prompts know), or
    `mixed` (each batch draws one of them).

    Against the paper: the lab's tokenizers have one token a word, so subword sampling does not exist here. This is the
    example consistency of the first stage; the second (noised rows as further data, and consistency with the first
    stage's model) is left out. The paper's tasks have one label for all languages; an answer here is said in the
    prompt's language, which the English prompt does not name: `translated` asks for what it cannot know.
    """

    def __init__(self, *args: Any, noise: str, weight: float, switch: Tensor, **kwargs: Any) -> None:
        """
        Args:
            noise, weight: of the equation. switch: as `english_of` makes it. Others: as the parent's.
        """
        if noise not in (*NOISES, "mixed"):
            raise ValueError(f"noise: {noise!r} is not one of {', '.join(NOISES)}, mixed")
        super().__init__(*args, **kwargs)
        self.noise, self.weight, self.switch = noise, weight, switch
        self.draws = torch.Generator().manual_seed(self.args.seed)
        self.noised_tokens = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As the parent's, with the consistency added."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        noised, labels = self.noised(inputs)
        self.noised_tokens += int(noised["attention_mask"].sum())
        logits = model(**noised, use_cache=False).logits
        loss = loss + self.weight * symmetric_kl(
            _predicting(outputs.logits, inputs["labels"]), _predicting(logits, labels)
        )
        return (loss, outputs) if return_outputs else loss

    def noised(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs with the prompts noised, and their labels; responses are as they were."""
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        prompt = (labels == -100) & mask.bool()
        drawn = NOISES[int(torch.randint(len(NOISES), (), generator=self.draws))]
        noise = drawn if self.noise == "mixed" else self.noise
        if noise == "switched":
            heads = (torch.rand(ids.shape, generator=self.draws) < COIN).to(ids.device)
            said = torch.where(prompt & heads, self.switch.to(ids.device)[ids], ids)
            return {"input_ids": said, "attention_mask": mask}, labels
        if noise == "gaussian":
            embedding = self.model.get_input_embeddings()
            clean = embedding(ids)
            blur = torch.randn(clean.shape, generator=self.draws).to(clean) * SPREAD * embedding.weight.detach().std()
            return {"inputs_embeds": clean + prompt[..., None] * blur, "attention_mask": mask}, labels
        rows, targets = [], []
        for row, reference in enumerate(inputs["reference_index"].tolist()):
            said = ids[row][prompt[row]]
            if reference >= 0:
                english, real = inputs["reference_input_ids"][reference], inputs["reference_attention_mask"][reference]
                said = english[real.bool()]
            answer = labels[row][labels[row] != -100]
            rows.append(torch.cat([said, answer]))
            targets.append(torch.cat([torch.full_like(said, -100), answer]))
        pad = nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        made = {"input_ids": pad(rows, batch_first=True), "attention_mask": mask}
        return made, pad(targets, batch_first=True, padding_value=-100)


def _predicting(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, V) of the positions that predict a label, row by row."""
    return logits[:, :-1][labels[:, 1:] != -100]


def train_xtune(job: Job) -> XTuneTrainer:
    """The base, trained."""
    tokenizer = load_tokenizer(str(job.base))
    trainer = XTuneTrainer(
        model=load_base(str(job.base)),
        args=job.args("xtune"),
        connection_config=ConnectionConfig(connection="none"),
        train_dataset=Dataset.from_list(job.rows),
        processing_class=tokenizer,
        noise=job.settings["noise"],
        weight=job.settings["weight"],
        switch=english_of(job.world, tokenizer),
    )
    trainer.train()
    return trainer


def xtune(job: Job) -> tuple[int, Answers]:
    """Train by consistency and answer. Settings: `noise`, `weight` (see `XTuneTrainer`)."""
    trainer = train_xtune(job)
    loaded = Loaded(trainer.model.eval(), None, load_tokenizer(str(job.base)), {})
    return tokens_read(trainer) + trainer.noised_tokens, right(loaded, job.world, job.split)
