"""Recipes: how a base is tuned with answered rows and parallel text, on the public API alone.

Each is a function from a `Job` to the tuned model. Every recipe reads the same answered rows and the same parallel
text, with the same batches, schedule and scoring, and has its own learning rate (and weight), searched on `dev`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cctuning import CCConfig, CCTrainer, ConnectionConfig
from experiments.real.text import checked, chosen, mispaired
from experiments.real.worlds import ENGLISH, Text, World, halves, translation, translation_from


@dataclass(frozen=True)
class Setting:
    """Options of a recipe; a field that a recipe does not read stays at its default.

    Attributes:
        text: rows and parallel text. rate: learning rate. epochs: over the answered rows. batch: answered rows a step.
        share: rows of parallel text for each answered row. weight: of the recipe's own term. loss, at, pool, layers:
            of the alignment; None: the product's default. reference_weights: as in `ConnectionConfig`.
        pairs: `right`, `wrong` (each text with another sentence's English), `own` (the answered rows' own parallels
            alone).
        noise: share of the pairs that are wrong. check: encoder with which `cctuning pair` checks them; None: none.
        choice: how the pairs are chosen from the world's text: None (any), `tfidf`, or an encoder's name.
        pack_rate, pack_passes, pack_batch: of alignment alone, before the answers.
        extra: further options of the connection.
    """

    text: Text = Text()
    rate: float = 5e-5
    epochs: float = 6
    batch: int = 16
    share: int = 3
    weight: float | None = None
    loss: str | None = None
    at: str | None = None
    pool: str | None = None
    layers: tuple[int, ...] | None = None
    reference_weights: str | None = None
    pairs: str = "right"
    noise: float = 0.0
    check: str | None = None
    choice: str | None = None
    pack_rate: float = 1e-4
    pack_passes: float = 2
    pack_batch: int = 64
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass
class Job:
    """What a recipe is given, and the notes it makes.

    Attributes:
        scratch: a folder of its own. amp: dtype of autocast. packs: where language packs are kept, which serve every
            later cell with the same text, options and seed; None: nowhere. noted: steps and final losses of each
            training, and whatever else tells what was done.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    world: World
    setting: Setting
    seed: int
    scratch: Path
    chat: bool = False
    amp: torch.dtype | None = None
    packs: Path | None = None
    noted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rng(self) -> random.Random:
        """Random numbers of the recipe, the same for the same seed."""
        return recipe_rng(self.seed)

    def rows(self) -> list[dict[str, Any]]:
        """The answered rows."""
        return list(self.world.rows(self.setting.text))

    def pairs(self) -> list[dict[str, str]]:
        """The parallel text: chosen, mispaired and checked as the setting says."""
        pairs, notes = parallel_text(self.world, self.setting, self.seed)
        self.noted += notes
        return pairs


def recipe_rng(seed: int) -> random.Random:
    """Random numbers of a recipe, the same for the same seed."""
    return random.Random(f"recipe {seed}")


def parallel_text(world: World, setting: Setting, seed: int) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The parallel text of a cell: chosen, mispaired and checked as its setting says; and notes of what was done."""
    if setting.choice:
        every = world.pairs(replace(setting.text, sentences=0))
        prompts = [row["prompt"].strip() for row in world.rows(setting.text)]
        pairs = chosen(every, prompts, setting.text.sentences, setting.choice, seed)
    else:
        pairs = world.pairs(setting.text)
    pairs = mispaired(pairs, recipe_rng(seed), 1.0 if setting.pairs == "wrong" else setting.noise)
    if not setting.check:
        return pairs, []
    count, pairs = len(pairs), checked(pairs, setting.check)
    return pairs, [{"checked": setting.check, "of": count, "kept": len(pairs)}]


Recipe = Callable[[Job], PreTrainedModel]


def options(job: Job, name: str, **given: Any) -> CCConfig:
    """Return the trainer's options that all recipes share, updated with `given`."""
    shared: dict[str, Any] = {
        "learning_rate": job.setting.rate,
        "num_train_epochs": job.setting.epochs,
        "per_device_train_batch_size": job.setting.batch,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "seed": job.seed,
        "chat": job.chat,
        "max_length": 512,
        "bf16": job.amp is torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 20,
        "disable_tqdm": True,
    }
    return CCConfig(str(job.scratch / name), **{**shared, **given})


def connection(job: Job, kind: str) -> ConnectionConfig:
    """Return the connection of this kind with the setting's options and the defaults of the package."""
    setting = job.setting
    said = {
        "align_weight": setting.weight,
        "align_loss": setting.loss,
        "align_at": setting.at,
        "align_pool": setting.pool,
        "layers": list(setting.layers) if setting.layers else None,
        "reference_weights": setting.reference_weights,
        **dict(setting.extra),
    }
    return ConnectionConfig(connection=kind, **{name: value for name, value in said.items() if value is not None})


def tune(
    job: Job,
    model: PreTrainedModel,
    name: str,
    rows: Sequence[dict[str, Any]] | None = None,
    pairs: Sequence[dict[str, str]] | None = None,
    kind: str = "none",
    trainer: type[CCTrainer] = CCTrainer,
    given: dict[str, Any] | None = None,
    **more: Any,
) -> PreTrainedModel:
    """Train once with `CCTrainer`; embeddings are frozen, all other weights are tuned.

    Args:
        name: of its folder and notes. rows: answered. pairs: parallel text. kind: of the connection. given: options of
            the trainer that differ from the shared ones. more: further arguments of the trainer's class.
    """
    model.get_input_embeddings().weight.requires_grad_(False)
    data: dict[str, Any] = {}
    if rows is not None:
        data["train_dataset"] = Dataset.from_list(list(rows))
    if pairs is not None:
        data["parallel_dataset"] = Dataset.from_list(list(pairs))
    config = connection(job, kind) if kind != "none" else ConnectionConfig(connection="none")
    made = trainer(model, options(job, name, **(given or {})), config, processing_class=job.tokenizer, **data, **more)
    made.train()
    last = [entry for entry in made.state.log_history if "loss" in entry][-1:]
    first = [entry for entry in made.state.log_history if "loss" in entry][:1]
    watched = made.by_language.as_dict() if made.by_language is not None else None
    job.noted.append(
        {
            "training": name,
            "steps": made.state.global_step,
            "first": first,
            "last": last,
            "aligned": watched,
            "skipped": len(made.skipped),
        }
    )
    return made.connected.merge_and_unload()


# -- the package ------------------------------------------------------------------------------------------------------


def base(job: Job) -> PreTrainedModel:
    """The base without training."""
    return job.model


def plain(job: Job) -> PreTrainedModel:
    """Plain SFT on the answered rows."""
    return tune(job, job.model, "plain", job.rows())


def align(job: Job) -> PreTrainedModel:
    """Answered rows and parallel text together."""
    if job.setting.pairs == "own":
        # A sentence that ends in its own label is a bad row: the reference would give the answer away.
        return tune(job, job.model, "align", _with_references(job), kind="align", given={"bad_rows": "skip"})
    given = {"parallel_rows": job.setting.share}
    return tune(job, job.model, "align", job.rows(), job.pairs(), "align", given=given)


def pack(job: Job) -> PreTrainedModel:
    """A language pack, alignment alone on the parallel text, then plain SFT on the answered rows."""
    return tune(job, packed(job), "plain", job.rows())


def pack_align(job: Job) -> PreTrainedModel:
    """A pack first, then answered rows together with the same text."""
    given = {"parallel_rows": job.setting.share}
    return tune(job, packed(job), "align", job.rows(), job.pairs(), "align", given=given)


def pack_added(job: Job) -> PreTrainedModel:
    """What plain SFT changed in the base, added to the pack: both trained apart, as task and language LoRAs are."""
    start = {name: weight.detach().clone() for name, weight in job.model.state_dict().items()}
    task = {
        name: weight.detach().clone()
        for name, weight in tune(job, job.model, "plain", job.rows()).state_dict().items()
    }
    job.model.load_state_dict(start)
    model = packed(job)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight += task[name] - start[name]
    return model


def packed(job: Job) -> PreTrainedModel:
    """Return the base with a pack, which is read from `job.packs` if it is there."""
    setting, pairs = job.setting, job.pairs()
    given = {
        "learning_rate": setting.pack_rate,
        "num_train_epochs": setting.pack_passes,
        "per_device_train_batch_size": setting.pack_batch,
    }
    config = connection(job, "align").to_dict()
    content = [given, config, pairs, job.seed, job.chat, str(job.amp), job.model.config.to_dict()]
    name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]
    place = job.packs / f"{name}.safetensors" if job.packs else None
    if place is not None and place.is_file():
        job.model.load_state_dict(load_file(place), strict=False)
        job.noted.append({"training": "pack", "kept": name})
        return job.model
    model = tune(job, job.model, "pack", pairs=pairs, kind="align", given=given)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        moved = {name: weight for name, weight in model.state_dict().items() if "layers." in name or "norm" in name}
        scratch = place.with_suffix(f".{os.getpid()}.part")
        save_file(moved, scratch)
        scratch.rename(place)
    return model


def cc(job: Job) -> PreTrainedModel:
    """The gated connection with its matrix, merged; the parallel text as rows without answers."""
    return tune(job, job.model, "cc", job.rows(), job.pairs(), "gated", given={"parallel_rows": job.setting.share})


def _with_references(job: Job) -> list[dict[str, Any]]:
    """Answered rows in several languages, each with its English prompt."""
    text = job.setting.text
    english = [row["prompt"] for row in job.world.rows(Text(labels=text.labels, order=text.order))]
    found = []
    for lang in text.answered:
        rows = job.world.rows(Text(labels=text.labels, answered=(lang,), order=text.order))
        for row, prompt in zip(rows, english, strict=True):
            found.append({**row, "reference": None if lang == ENGLISH else prompt})
    return found


# -- the same text in other ways --------------------------------------------------------------------------------------


def translation_rows(job: Job) -> PreTrainedModel:
    """The parallel text as rows to be translated into English, mixed with the answered rows."""
    return _mixed(job, "translation", translations(job))


def translation_first(job: Job) -> PreTrainedModel:
    """Question translation (arXiv 2405.13816): translating into English first, then plain SFT on the English rows."""
    return _first(job, "translation", translations(job))


def translation_both(job: Job) -> PreTrainedModel:
    """Translation rows in both directions, mixed with the answered rows."""
    return _mixed(job, "translation", _both_ways(job))


def pack_translation(job: Job) -> PreTrainedModel:
    """A language pack, then the answered rows mixed with translation rows of the same text in both directions."""
    others = _both_ways(job)
    job.model = packed(job)
    return _mixed(job, "translation", others)


def text_rows(job: Job) -> PreTrainedModel:
    """The parallel text as plain text, both sides, mixed with the answered rows."""
    return _mixed(job, "text", plain_texts(job))


def text_first(job: Job) -> PreTrainedModel:
    """Language modelling of the same text first, both sides, then plain SFT on the English rows."""
    return _first(job, "text", plain_texts(job))


def translations(job: Job) -> list[dict[str, str]]:
    """Return rows that ask for a translation into English."""
    return [
        {"prompt": translation(pair), "response": f" {pair['reference']}", "lang": pair["lang"]}
        for pair in job.pairs()
    ]


def _both_ways(job: Job) -> list[dict[str, str]]:
    pairs = job.pairs()
    out = [{"prompt": translation_from(one), "response": one["text"], "lang": one["lang"]} for one in pairs]
    return translations(job) + out


def plain_texts(job: Job) -> list[dict[str, str]]:
    """Return rows of plain text: the first word (or character) of each side is the prompt, the rest the response."""
    found = []
    for pair in job.pairs():
        for lang, text in ((pair["lang"], pair["text"]), (ENGLISH, pair["reference"])):
            first, rest = halves(text)
            if first.strip() and rest:
                found.append({"prompt": first, "response": rest, "lang": lang})
    return found


def _first(job: Job, name: str, others: Sequence[dict[str, str]]) -> PreTrainedModel:
    """Plain SFT on `pack_passes` of the others, then on the answered rows."""
    drawn = _drawn(others, round(len(job.pairs()) * job.setting.pack_passes), job.rng)
    return tune(job, tune(job, job.model, name, drawn, given=first_options(job)), "plain", job.rows())


def first_options(job: Job) -> dict[str, Any]:
    """Options of a training on text before the answered rows."""
    return {"learning_rate": job.setting.pack_rate, "num_train_epochs": 1, "per_device_train_batch_size": 32}


def mixed_options(job: Job) -> dict[str, Any]:
    """Options of one epoch over all epochs of the answered rows, with `share` other rows for each of them."""
    return {"num_train_epochs": 1, "per_device_train_batch_size": job.setting.batch * (1 + job.setting.share)}


def padded(sequences: Sequence[list[int]], device: torch.device) -> dict[str, Tensor]:
    """Return token ids as a batch padded on the right, with its attention mask, (N, T) each."""
    ids = pad_sequence([torch.tensor(one) for one in sequences], batch_first=True)
    mask = pad_sequence([torch.ones(len(one), dtype=torch.long) for one in sequences], batch_first=True)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _mixed(job: Job, name: str, others: Sequence[dict[str, str]]) -> PreTrainedModel:
    """One epoch over all epochs of the answered rows, with `share` of the others for each of them."""
    rows = job.rows() * round(job.setting.epochs)
    mixed = rows + _drawn(others, len(rows) * job.setting.share, job.rng)
    return tune(job, job.model, name, mixed, given=mixed_options(job))


def _drawn(rows: Sequence[dict[str, str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Draw `count` rows, each equally often (give or take one)."""
    found: list[dict[str, str]] = []
    while len(found) < count:
        found += rng.sample(list(rows), min(len(rows), count - len(found)))
    return found
