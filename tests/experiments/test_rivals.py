"""The rivals do what they say: noise that leaves responses alone, a frozen base, adapters each for one thing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from cctuning.connection import ConnectionConfig
from cctuning.demo.base import BaseConfig, build_base
from cctuning.demo.tuning import right
from cctuning.demo.worlds import ENGLISH, others
from cctuning.model.loading import load, load_base, load_tokenizer
from cctuning.training import CCTrainer
from experiments.worlds import cells, setups
from experiments.worlds.cells import Cell
from experiments.worlds.controlled import ControlledWorld, Sizes
from experiments.worlds.mad_x import TASK, mad_x, speak, train_mad_x
from experiments.worlds.recipes import RECIPES, joint
from experiments.worlds.rivals import Job, XTuneTrainer, english_of, symmetric_kl, train_xtune

TINY = BaseConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, english_steps=300, joint_steps=60)
XTUNE = {"learning_rate": 2e-3, "num_train_epochs": 2, "noise": "switched", "weight": 1.0}
MAD_X = {"learning_rate": 5e-3, "num_train_epochs": 1, "language_rate": 2e-3, "language_steps": 4}


@pytest.fixture(scope="module")
def world():
    return ControlledWorld("facts", 0, Sizes(people=30, sft=12, dev=8, test=8, free=4))


@pytest.fixture(scope="module")
def job(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    base = build_base(world, folder / "bases", TINY, progress=False)
    return Job(base, TINY, world, joint(world), XTUNE, "sft", 0, folder)


def trainer_of(job: Job, noise: str) -> XTuneTrainer:
    """A trainer before its first step."""
    tokenizer = load_tokenizer(str(job.base))
    return XTuneTrainer(
        model=load_base(str(job.base)),
        args=job.args("noise"),
        connection_config=ConnectionConfig(connection="none"),
        train_dataset=Dataset.from_list(job.rows),
        processing_class=tokenizer,
        noise=noise,
        weight=1.0,
        switch=english_of(job.world, tokenizer),
    )


def batch_of(trainer: XTuneTrainer, lang: str | None = None) -> dict[str, torch.Tensor]:
    """Every row, or those of one language (of which `rows` has each question in turn)."""
    data = trainer.train_dataset
    return trainer.data_collator([row for row in data if lang is None or row["lang"] == lang])


def test_symmetric_kl_by_hand():
    one, two = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log(), torch.tensor([[0.6, 0.4], [0.5, 0.5]]).log()
    forth = 0.9 * torch.tensor(0.9 / 0.6).log() + 0.1 * torch.tensor(0.1 / 0.4).log()
    back = 0.6 * torch.tensor(0.6 / 0.9).log() + 0.4 * torch.tensor(0.4 / 0.1).log()
    assert symmetric_kl(one, two) == pytest.approx(float(forth + back) / 2, rel=1e-5)
    assert symmetric_kl(one, two) == symmetric_kl(two, one) and symmetric_kl(one, one) == 0
    one.requires_grad_()
    symmetric_kl(one, two).backward()  # as the target it has no gradient: what is left is that of a cross entropy
    assert torch.allclose(one.grad, (one.softmax(-1) - two.softmax(-1)).detach() / 2, atol=1e-6)


def responses(ids: torch.Tensor, labels: torch.Tensor) -> list[list[int]]:
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    return [row[row != -100].tolist() for row in labels]


@pytest.mark.parametrize("noise", ["switched", "translated"])
def test_noise_in_words(job, world, noise):
    """Responses stay; prompts become what is said; a row in English is left as it is."""
    trainer = trainer_of(job, noise)
    batch = batch_of(trainer)
    made, labels = trainer.noised(batch)
    assert responses(made["input_ids"], labels) == responses(batch["input_ids"], batch["labels"])
    tokenizer = trainer.processing_class
    glosses = {word: gloss for word, by in world.senses().items() for found in by.values() for gloss in found}
    kept = changed = 0
    for number, row in enumerate(batch["row"].tolist()):
        told, mask, label = job.rows[row], made["attention_mask"][number].bool(), labels[number]
        prompt = tokenizer.convert_ids_to_tokens(made["input_ids"][number][mask & (label == -100)].tolist())
        if noise == "translated":
            assert prompt == told["prompt_en"].split()
            continue
        for word, said in zip(told["prompt"].split(), prompt, strict=True):
            assert said in (word, glosses.get(word))
            kept, changed = kept + (said == word and word in glosses), changed + (said != word)
    assert noise == "translated" or 0.4 < changed / (kept + changed) < 0.6


def test_gaussian_noise_is_on_the_prompt_alone(job):
    trainer = trainer_of(job, "gaussian")
    batch = batch_of(trainer)
    embedding = trainer.model.get_input_embeddings()
    difference = (trainer.noised(batch)[0]["inputs_embeds"] - embedding(batch["input_ids"])).detach()
    prompt = (batch["labels"] == -100) & batch["attention_mask"].bool()
    assert (difference[~prompt] == 0).all()
    assert difference[prompt].std() == pytest.approx(0.5 * float(embedding.weight.detach().std()), rel=0.1)


@pytest.mark.parametrize("noise", ["switched", "translated", "gaussian"])
def test_consistency_costs_where_there_is_noise(job, world, noise):
    """What the loss adds to plain SFT's is 0 for English, where words are noised, and more elsewhere."""
    trainer = trainer_of(job, noise)
    added = {}
    for lang in world.languages:
        losses = []
        for weight in (0.0, 1.0):
            trainer.weight = weight
            losses.append(trainer.compute_loss(trainer.model, batch_of(trainer, lang)).item())
        added[lang] = losses[1] - losses[0]
    assert all(added[lang] > 1e-3 for lang in others(world))
    assert added[ENGLISH] > 1e-3 if noise == "gaussian" else added[ENGLISH] == pytest.approx(0, abs=1e-6)


def test_what_is_added_has_its_weight(job):
    """The loss is plain SFT's and `weight` times the consistency, in value and in gradient."""
    trainer = trainer_of(job, "translated")
    batch, gradients, losses = batch_of(trainer), {}, {}
    for weight in ("plain", 0.0, 1.0, 3.0):
        trainer.model.zero_grad()
        if weight == "plain":
            loss = CCTrainer.compute_loss(trainer, trainer.model, batch)
        else:
            trainer.weight = weight
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses[weight] = loss.item()
        gradients[weight] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert losses[0.0] == pytest.approx(losses["plain"], rel=1e-5)
    assert torch.allclose(gradients[0.0], gradients["plain"], atol=1e-5)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-3)
    added = gradients[1.0] - gradients[0.0]
    assert added.norm() > 0 and torch.allclose(gradients[3.0] - gradients[0.0], 3 * added, atol=1e-4)


def test_training_for_consistency_makes_answers_consistent(job):
    """After training with it, prompts said in half English are answered more as they are than after plain SFT."""
    apart = []
    for weight in (0.0, 2.0):
        trainer = train_xtune(replace(job, settings={**XTUNE, "weight": weight, "num_train_epochs": 12}))
        assert trainer.noised_tokens > 0
        batch = batch_of(trainer)
        trainer.weight, trainer.draws = 1.0, torch.Generator().manual_seed(1)
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, batch)
            apart.append(float(loss - CCTrainer.compute_loss(trainer, trainer.model, batch)))
    assert apart[1] < 0.8 * apart[0], apart


def adapters(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The weights that an adapter has at the end of its factors: 0 before its first step."""
    return torch.cat([p.detach().flatten() for key, p in model.named_parameters() if f"lora_B.{name}." in key])


@pytest.fixture(scope="module")
def trained(job):
    return train_mad_x(replace(job, settings=MAD_X))


def test_mad_x_trains_what_it_says(job, world, trained):
    """The base stays; languages' adapters differ and stay while the task's, one for all, is trained."""
    tokens, model = trained
    _, other = train_mad_x(replace(job, settings={**MAD_X, "learning_rate": 1e-3}))
    before = load_base(str(job.base)).state_dict()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    languages = [adapters(model, lang) for lang in world.languages]
    assert all(one.abs().sum() > 0 for one in languages)
    assert all(not torch.equal(one, two) for one, two in itertools.pairwise(languages))
    # Two runs that differ in the task's rate alone have the same languages.
    assert all(torch.equal(one, adapters(other, lang)) for one, lang in zip(languages, world.languages, strict=True))
    assert adapters(model, TASK).abs().sum() > 0
    assert not torch.equal(adapters(model, TASK), adapters(other, TASK))
    assert tokens > MAD_X["language_steps"] * 32 * len(world.languages)  # and the rows


def test_mad_x_answers_over_the_items_own_language(job, world, trained):
    _, model = trained
    item = world.items("qaa", "dev")[0]
    ids = load_tokenizer(str(job.base))(item.prompt, return_tensors="pt").input_ids
    logits = {}
    for lang in ("qaa", "qab", "qaa"):
        speak(model, lang)
        found = model(input_ids=ids).logits.detach()
        assert torch.equal(logits.setdefault(lang, found), found)  # also after another language spoke
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {
            name for name, _ in model.named_parameters() if f".{TASK}." in name
        }
    assert not torch.allclose(logits["qaa"], logits["qab"])


def test_mad_x_learns_the_rows_it_is_trained_on(job, world):
    """Over a frozen base too small to know them, the adapters learn the rows of the languages but English."""
    before = right(load(str(job.base)), world, "sft")
    settings = {**MAD_X, "num_train_epochs": 40, "learning_rate": 2e-2}
    _, after = mad_x(replace(job, settings=settings))
    assert list(after) == list(world.languages) and len(after[ENGLISH]) == len(world.items(ENGLISH, "sft"))
    shares = {lang: (sum(before[lang]) / len(before[lang]), sum(after[lang]) / len(after[lang])) for lang in after}
    assert all(shares[lang][0] < 0.2 and shares[lang][1] > 0.5 for lang in others(world)), shares


def test_a_rival_trains_by_the_setups_options(job, tmp_path, monkeypatch):
    """Batch and length are the setup's, as for every other recipe."""
    sizes, seen = job.world.sizes, []

    def rival(given):
        seen.append(given.args("rival"))
        return 1, {lang: [True] for lang in given.world.languages}

    trained = {"per_device_train_batch_size": 6, "max_length": 40}
    toy = setups.Setup("toy", lambda seed: ControlledWorld("facts", seed, sizes), TINY, trained=trained)
    monkeypatch.setitem(setups.SETUPS, "toy", toy)
    monkeypatch.setitem(RECIPES, "xtune", replace(RECIPES["xtune"], rival=rival))
    (tmp_path / "bases").symlink_to(job.base.parent)
    cells.run(Cell("toy", 0, "xtune", XTUNE), tmp_path)
    assert (seen[0].per_device_train_batch_size, seen[0].max_length) == (6, 40)
    assert job.args("rival").per_device_train_batch_size == 32  # the lab's, where the setup has none


@pytest.mark.parametrize("recipe, settings", [("xtune", XTUNE), ("mad-x", MAD_X)])
def test_a_cell_of_a_rival_gives_the_same_again(job, tmp_path, monkeypatch, recipe, settings):
    sizes = job.world.sizes
    toy = setups.Setup("toy", lambda seed: ControlledWorld("facts", seed, sizes), TINY)
    monkeypatch.setitem(setups.SETUPS, "toy", toy)
    cell, records = Cell("toy", 0, recipe, settings), []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bases").symlink_to(job.base.parent)
        records.append(cells.run(cell, tmp_path / name))
    first, second = records
    assert first["right"] == second["right"] and first["tokens"] == second["tokens"] > 0
    assert {lang: len(flags) for lang, flags in first["right"]["student"].items()} == dict.fromkeys(
        job.world.languages, 8
    )
    places = {
        cells.key(one, *cells.world_and_base("toy", 0), None)
        for one in (cell, replace(cell, settings={**settings, "learning_rate": 1e-4}))
    }
    assert len(places) == 2
