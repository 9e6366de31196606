"""Pairs that are held out and measured, references that are recorded, and what is said of parallel text."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset
from peft import LoraConfig

from cctuning import CCTrainer, ConnectionConfig, UserError
from cctuning.training import CCConfig
from cctuning.training.schedule import held_out
from tests.training.aligned import Taken, curve, english, pairs, trainer
from tests.training.toys import model, tokenizer


@pytest.mark.parametrize(("rate", "advice"), [(1e-9, "Raise learning_rate"), (1e-3, None), (3e-2, "Lower")])
@pytest.mark.parametrize("answered", [None, english()])
def test_an_error_that_does_not_fall_is_reported_at_step_50(answered, rate, advice, tmp_path, caplog, monkeypatch):
    """Whatever the losses of single batches say: batches of one row vary more than training changes them."""
    monkeypatch.setattr("cctuning.training.callbacks.LOOK_AT", 40)
    options = {"pairs": pairs(400), "max_steps": 42, "logging_steps": 1, "per_device_train_batch_size": 1}
    made = trainer(tmp_path, None, answered, **options, learning_rate=rate, warmup_steps=0)
    made.train()
    told = [record.getMessage() for record in caplog.records if "does not fall" in record.getMessage()]
    assert len(told) == bool(advice) and all("at step 40" in line and advice in line for line in told)
    losses = [line["align_loss"] for line in made.state.log_history if "align_loss" in line]
    assert max(losses) > 1.05 * min(losses)


def texts(rows: Dataset | list, made: CCTrainer) -> set[str]:
    return {made.processing_class.decode(row["input_ids"]) for row in rows}


@pytest.mark.parametrize("answered", [None, english()])
def test_pairs_are_held_out_and_never_trained_on(answered, tmp_path):
    """The same ones in a run that is resumed: the choice depends on the pairs alone."""
    options = {"pairs": pairs(700), "per_device_train_batch_size": 16, "num_train_epochs": 1}
    made, again = (trainer(tmp_path, None, answered, **options, seed=seed) for seed in (1, 2))
    held = texts(made.held, made)
    assert held == texts(again.held, again)
    counts = Counter(row["lang"] for row in made.held)
    assert 20 <= counts["sw"] <= 26 and 5 <= counts["th"] <= 8  # 5 % of 525 and 175, without texts that come twice
    assert not held & texts(made.table, made)
    taken = Taken(made)
    made.train()
    ids = {row for rows in taken.steps.values() for row, _ in rows}
    assert ids and not ids & set(made.held["row"])
    assert {code: one["held_out"] for code, one in made.by_language.as_dict().items()} == {"sw": True, "th": True}
    assert "held-out pairs" in made.by_language.table()


def test_a_small_language_is_measured_on_its_training_text(tmp_path):
    made = trainer(tmp_path, pairs=pairs(200), max_steps=3)  # 150 and 50
    made.train()
    found = made.by_language.as_dict()
    assert found["sw"]["held_out"] and not found["th"]["held_out"]
    assert "; 8 pairs of the training text" in made.by_language.table()


def test_at_most_a_twentieth_of_a_language_is_held_out_and_no_text_that_comes_twice():
    rows = {
        "prompt": [f"a{n}" for n in range(99)] + [f"b{n % 90}" for n in range(100)] + [f"c{n}" for n in range(2000)]
    }
    rows["lang"] = ["sw"] * 99 + ["th"] * 100 + ["yo"] * 2000
    found = held_out(Dataset.from_dict(rows), "en")
    counts = Counter(rows["lang"][place] for place in found)
    assert counts == {"th": 3, "yo": 32}
    assert all(rows["prompt"].count(rows["prompt"][place]) == 1 for place in found)


@pytest.mark.parametrize("answered", [None, english()])
@pytest.mark.parametrize("first", [0, 2])
def test_a_short_run_records_the_references_that_it_reads(answered, first, tmp_path, monkeypatch):
    monkeypatch.setattr("cctuning.training.recording.OTHERS", 10)
    options = {"pairs": pairs(400), "max_steps": 4, "gradient_accumulation_steps": 2}
    if answered is not None:
        options |= {"align_first": first}
    short = trainer(tmp_path / "short", None, answered, **options)
    assert 10 < len(short.recording.prompts) < 80 and "all that the run reads and a sample" in short.recording.size()
    short.train()
    whole = trainer(tmp_path / "whole", {"align_loss": "standardized"}, answered, **options, record_references="true")
    monkeypatch.setattr("cctuning.training.schedule.Schedule.rows_read", lambda self, steps: range(len(self.lengths)))
    every = trainer(tmp_path / "all", {"align_loss": "standardized"}, answered, **options)
    assert len(every.recording.prompts) > 300
    # Same statistics: the vectors that the steps take are the same ones.
    for made in (whole, every):
        made.make_recording()
    for layer, found in every.connected.recorded.statistics.items():
        found.mean.copy_(whole.connected.recorded.statistics[layer].mean)
        found.spread.copy_(whole.connected.recorded.statistics[layer].spread)
    whole.train(), every.train()
    assert curve(whole) == pytest.approx(curve(every), rel=1e-5)


def test_a_run_is_not_made_longer_than_its_recording(tmp_path):
    made = trainer(tmp_path, pairs=pairs(400), max_steps=4)
    made.args.max_steps = 40
    with pytest.raises(UserError, match="raised after CCTrainer was made"):
        made.train()


def test_parallel_text_that_is_evaluated_on_is_a_note_from_python_too(tmp_path, caplog):
    text = pairs()
    asked = {"prompt": text["text"][:2] + text["reference"][5:6], "response": ["w1"] * 3, "lang": ["sw", "sw", "en"]}
    for answered in (None, english()):
        args = CCConfig(str(tmp_path), max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
        made = CCTrainer(
            model(),
            args,
            ConnectionConfig(layers=[0, 1]),
            train_dataset=answered,
            parallel_dataset=text,
            eval_dataset=Dataset.from_dict(asked),
            processing_class=tokenizer(),
        )
        said = "3 pairs of the parallel text are prompts of the evaluation rows"
        assert any(said in note and "parallel_dataset: row 0 (eval_dataset" in note for note in made.notes)
        made.train()
        assert said in caplog.text


def test_a_pair_that_is_too_long_names_the_option(tmp_path):
    long = {"text": ["x1 " * 40, "x1 x2"], "reference": ["w1 " * 40, "w1 w2"], "lang": ["sw", "sw"]}
    with pytest.raises(
        UserError, match=r"40 tokens, and max_length is 20; .*set bad_rows: skip to leave out such rows"
    ):
        trainer(tmp_path, pairs=Dataset.from_dict(long), max_length=20)
    made = trainer(tmp_path, pairs=Dataset.from_dict(long), max_length=20, bad_rows="skip")
    assert len(made.train_dataset) == 2 and len(made.skipped) == 2


@pytest.mark.parametrize("packing", [False, True])
def test_the_measurement_at_step_50_changes_no_step(packing, tmp_path, monkeypatch):
    """Also with dropout, whose random numbers it must not use up."""
    found = []
    for step in (2, 50):
        monkeypatch.setattr("cctuning.training.callbacks.LOOK_AT", step)
        options = {"pairs": pairs(400), "max_steps": 5, "gradient_accumulation_steps": 2, "packing": packing}
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.3, target_modules=["q_proj", "down_proj"])
        made = trainer(tmp_path / str(step), None, english(), **options, peft=lora)
        made.train()
        found.append(curve(made))
    assert found[0] == found[1]
