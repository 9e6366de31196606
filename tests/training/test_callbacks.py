"""Evaluation losses by language, sample answers and early stopping."""

from __future__ import annotations

import json

import pytest
import torch

from cctuning import UserError
from tests.cli.world import done, metrics, records, run_json, write_jsonl, write_model, write_recipe
from tests.training.test_trainer import config, trainer
from tests.training.toys import rows


def test_the_losses_of_languages_make_up_the_whole(tmp_path):
    made = trainer(tmp_path)
    made.eval_dataset = made._prepare_dataset(rows(13, seed=4), made.processing_class, made.args, False, None, "eval")
    found = made.evaluate()
    tokens = {"en": 0, "qaa": 0}
    for row in made.eval_dataset:
        tokens[row["lang"]] += sum(label != -100 for label in row["labels"][1:])
    mean = sum(found[f"eval_loss_{lang}"] * count for lang, count in tokens.items()) / sum(tokens.values())
    assert mean == pytest.approx(found["eval_loss"], rel=1e-5)
    made.args.per_device_eval_batch_size = 13  # one batch: the mean over batches is the mean over tokens
    assert mean == pytest.approx(made.evaluate()["eval_loss"], rel=1e-5)
    only = [place for place, row in enumerate(made.eval_dataset) if row["lang"] == "qaa"]
    made.eval_dataset = made.eval_dataset.select(only)
    alone = made.evaluate()
    assert alone["eval_loss"] == pytest.approx(found["eval_loss_qaa"], rel=1e-5) and "eval_loss_qaa" not in alone


def run(tmp_path, **options):
    base = tmp_path / "base"
    if not base.exists():
        write_model(base)
    data = write_jsonl(tmp_path / "rows.jsonl", records())
    given = {"model": str(base), "data": str(data), "eval_data": str(data), "eval_strategy": "steps", "eval_steps": 3}
    done("train", "--config", write_recipe(tmp_path / "r.yaml", **given, **options), "--output_dir", tmp_path / "run")
    return tmp_path / "run"


def test_each_evaluation_shows_losses_and_answers(tmp_path):
    folder = run(tmp_path, report_to="tensorboard")
    evaluations = [line for line in metrics(folder) if "eval_loss" in line]
    assert len(evaluations) == 2 and all({"eval_loss_qaa", "eval_loss_en"} <= set(line) for line in evaluations)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["lang"]) for line in lines] == [
        (step, lang) for step in (3, 6) for lang in (line["lang"] for line in lines[:4])
    ]
    assert sorted(line["lang"] for line in lines[:4]) == ["en", "en", "qaa", "qaa"]
    known = {(row["prompt"], (row["response"] or "").strip()) for row in records()}
    assert all((line["prompt"].strip(), line["expected"]) in known for line in lines)
    assert any(b"answers/qaa" in file.read_bytes() for file in folder.rglob("events.out.*"))


def test_watching_changes_nothing_of_the_training(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    watched = run(tmp_path / "a", tune="lora", lora_dropout=0.2)
    blind = run(tmp_path / "b", tune="lora", lora_dropout=0.2, eval_samples=0)
    assert not (blind / "samples.jsonl").exists() and metrics(watched) == metrics(blind)


def test_training_stops_when_the_loss_no_longer_falls(tmp_path):
    folder = run(tmp_path, learning_rate=3.0, max_steps=60, early_stopping_patience=2)
    record, evaluations = run_json(folder), [line for line in metrics(folder) if "eval_loss" in line]
    assert record["steps"] < 60
    best = min(evaluations, key=lambda line: line["eval_loss"])
    assert evaluations.index(best) == len(evaluations) - 3
    from cctuning.model.loading import load

    kept, then = load(str(folder)), load(str(folder / f"checkpoint-{best['step']}"))
    ids = torch.arange(6, 18)[None]
    assert torch.equal(kept.connected(ids).logits, then.connected(ids).logits)


@pytest.mark.parametrize("options", [{"eval_steps": 2, "save_steps": 500}, {"eval_steps": 0.25, "save_steps": 3}, {}])
def test_early_stopping_saves_where_it_evaluates(options, tmp_path):
    made = config(tmp_path, early_stopping_patience=2, eval_strategy="steps", **options)
    assert made.save_steps == made.eval_steps and made.save_strategy == "steps" and made.load_best_model_at_end


def test_early_stopping_without_evaluations_is_one_line(tmp_path):
    with pytest.raises(UserError, match="early_stopping_patience: needs evaluations"):
        config(tmp_path, early_stopping_patience=2)
    with pytest.raises(UserError, match="early_stopping_patience: expected at least 1"):
        config(tmp_path, early_stopping_patience=0, eval_strategy="epoch")
