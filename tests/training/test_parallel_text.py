"""Parallel text without answers: beside answered rows, and alone (a language pack)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from cctuning import CCTrainer, ConnectedModel, ConnectionConfig, UserError
from cctuning.model.passes import Batch
from cctuning.training import CCConfig
from cctuning.training.schedule import Mixture, as_rows
from tests.training.aligned import Taken, curve, english, pairs, trainer
from tests.training.toys import model, rows, tokenizer


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("loss", ["contrastive", "standardized"])
def test_english_rows_with_parallel_text_train(loss, chat, tmp_path):
    made = trainer(tmp_path, {"align_loss": loss}, english(), chat=chat, learning_rate=2e-3, num_train_epochs=20)
    made.train()
    aligned = curve(made, "align_loss")
    assert sum(aligned[-5:]) < 0.9 * sum(aligned[:5])
    assert curve(made, "lm_loss")[-1] < curve(made, "lm_loss")[0]


def test_a_language_pack_is_a_plain_model_that_plain_sft_goes_on_from(tmp_path):
    made = trainer(tmp_path, num_train_epochs=4)
    assert len(made.train_dataset) == 48  # each pair, and each reference as a row of its own
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    made.train()
    assert curve(made, "align_loss")[-1] < 0.9 * curve(made, "align_loss")[0]
    highest = max(made.connected.layers)
    for name, parameter in made.model.named_parameters():
        layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else None
        if layer is not None:  # what lies above the last aligned layer has no part in the loss
            assert torch.equal(parameter, before[name]) == (layer > highest), name
    made.save_model(str(tmp_path / "pack"))
    assert not list((tmp_path / "pack").glob("connection_*"))
    pack = AutoModelForCausalLM.from_pretrained(tmp_path / "pack")
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, pack.get_parameter(name)), name


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize(
    "connection",
    [
        {"align_loss": "standardized"},
        {"align_loss": "relative", "align_at": "ffn", "align_pool": "last"},
        {"align_loss": "standardized", "align_pool": "text_last"},
        {"connection": "gated", "align_loss": "standardized", "fused_probability_end": 1.0},
        {"connection": "gated"},
    ],
)
def test_recorded_references_train_as_the_live_pass_does(connection, tune, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if tune == "lora" else None
    runs = []
    foreign = rows().filter(lambda row: row["lang"] != "en")  # rows in English have a reference only with `start`
    for record in ("true", "false"):
        # The weights stay where they are, so what the live pass computes through them is what was recorded.
        made = trainer(tmp_path / record, connection, foreign, record_references=record, peft=lora, learning_rate=0.0)
        assert ("reference_row" in made.train_dataset.column_names) == (record == "true")
        made.train()
        runs.append(curve(made))
    assert len(runs[0]) == 18
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_takes_the_same_pairs(workers, tmp_path):
    options = {"dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole", None, english(), **options)
    whole.train()
    cut = trainer(tmp_path / "whole", None, english(), **options)
    cut.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert curve(cut) == pytest.approx(curve(whole), rel=1e-6)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(parameter, cut.model.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_every_batch_holds_its_share_and_each_pair_comes_once_before_any_comes_twice(tmp_path):
    made = trainer(tmp_path, None, english(), parallel_temperature=1.0)
    loader, seen = made.get_train_dataloader(), Counter()
    places = set(made.parallel["row"])
    for epoch in range(8):
        made._schedule.set_epoch(epoch)
        for batch in loader:
            answered = (batch["labels"] != -100).any(dim=1)
            assert batch["input_ids"].shape[0] == 3 * int(answered.sum())
            seen.update(batch["row"][~answered].tolist())
    assert set(seen) <= places and max(seen.values()) - min(seen.values()) <= 1 and len(seen) == 48


FIRST = {"align_first": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 2}


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("each", [0, 2])
def test_parallel_text_comes_first_then_each_answered_row_once_an_epoch(each, strategy, tmp_path):
    answered = english()
    options = {**FIRST, "parallel_rows": each, "train_sampling_strategy": strategy, "parallel_temperature": 1.0}
    made = trainer(tmp_path, None, answered, **options)
    taken = Taken(made)
    made.train()
    assert [len(taken.steps[step]) for step in (1, 2, 3)] == [4, 4, 4]
    assert not any(right for step in (1, 2, 3) for _, right in taken.steps[step])
    later = [row for step, rows in taken.steps.items() if step > 3 for row in rows]
    assert Counter(row for row, right in later if right) == Counter(dict.fromkeys(answered["row"], 2))
    assert sum(not right for _, right in later) == 2 * each * len(answered)
    pairs_taken = Counter(row for rows in taken.steps.values() for row, right in rows if not right)
    assert max(pairs_taken.values()) - min([pairs_taken[row] for row in made.parallel["row"]]) <= 1
    assert made.state.global_step == made.state.max_steps == 3 + 2 * -(-len(answered) // 4)
    epochs = list(taken.epochs.values())
    assert epochs == sorted(epochs) and max(epochs[:3]) < 1 and epochs[-1] == 2
    assert not set(answered["row"]) & set(made.parallel["row"])
    if each == 0:
        assert all("align_loss" not in entry for entry in made.state.log_history if entry["step"] > 3)


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 64}])
def test_the_fused_pass_fades_over_the_answered_rows_alone(options, tmp_path):
    """Rows without an answer never take it, so the steps of `align_first` are not counted; nor after resuming."""
    options = {"save_strategy": "steps", "save_steps": 4, "align_first": 3, **options}
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        made, chances = trainer(tmp_path, {"connection": "gated"}, rows(), **options), {}
        loss = made.compute_loss

        def watched(*args, made=made, loss=loss, chances=chances, **kwargs):
            result = loss(*args, **kwargs)
            chances[made.state.global_step] = made.connected.fused_probability
            return result

        made.compute_loss = watched
        made.train(resume_from_checkpoint=checkpoint)
        found.append(chances)
    last = made.state.max_steps - 1
    assert found[0] == pytest.approx({step: 1 - max(0, step - 3) / (last - 3) for step in range(last + 1)})
    assert found[1] == {step: chance for step, chance in found[0].items() if step >= 4}


def test_alignment_first_then_plain_sft_is_that(tmp_path):
    """The answered rows' steps are those of connection: none on a model that was aligned, at the same rates."""
    made = trainer(
        tmp_path / "a", None, english(), **FIRST, parallel_rows=0, optim="sgd", lr_scheduler_type="constant"
    )
    made.train()
    pack = trainer(tmp_path / "b", None, english(), **{**FIRST, "max_steps": 4}, parallel_rows=0, optim="sgd")
    pack.args.max_steps = 3  # the alignment alone, over the same pairs
    pack.args.lr_scheduler_type = made.args.lr_scheduler_type
    pack.train()
    plain = CCTrainer(
        pack.model,
        CCConfig(
            str(tmp_path / "c"),
            per_device_train_batch_size=2,
            learning_rate=5e-3,
            optim="sgd",
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            **{key: value for key, value in FIRST.items() if key != "align_first"},
        ),
        ConnectionConfig("none"),
        train_dataset=english(),
        processing_class=tokenizer(),
    )
    plain.train()
    assert curve(plain) == pytest.approx(curve(made)[3:], rel=1e-5)


@pytest.mark.parametrize("at", [2, 3, 4])
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_run_with_alignment_first_resumes_exactly(strategy, at, tmp_path):
    options = {**FIRST, "save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": strategy}
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.3, target_modules="all-linear")
    whole = trainer(tmp_path / "run", None, english(), **options, peft=lora)
    through = Taken(whole)
    whole.train()
    cut = trainer(tmp_path / "run", None, english(), **options, peft=lora)
    after = Taken(cut)
    cut.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{at}"))
    assert after.steps == {step: rows for step, rows in through.steps.items() if step > at}
    assert curve(cut) == pytest.approx(curve(whole), rel=1e-6)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, cut.model.get_parameter(name)), name


@pytest.mark.parametrize("pool", ["mean", "last", "text_last"])
def test_a_process_without_references_takes_part_in_the_reference_pass(pool, monkeypatch):
    """As with sharded weights, where each forward is collective, if references run in every step."""
    connected = ConnectedModel.attach(model(), ConnectionConfig(layers=[0, 1], align_pool=pool))
    ids, none = torch.tensor([[7, 8, 9]]), torch.zeros(0, 1, dtype=torch.long)
    batch = Batch(ids, None, ids, none, none, torch.tensor([-1]))
    monkeypatch.setattr("cctuning.model.forward.several_processes", lambda: True)
    passes = []
    monkeypatch.setattr(
        connected, "reference_pass", lambda batch: passes.append(type(connected).reference_pass(connected, batch))
    )
    connected._references(replace(batch, reference_text=none.new_zeros(0, 2)), connected.config)
    assert len(passes) == 1 and passes[0].memory[1][0].shape == (1, connected.width)


def test_a_small_language_is_raised_by_the_temperature():
    languages = ["sw"] * 90 + ["yo"] * 10
    for temperature, share in ((1.0, 0.1), (2.0, 0.25), (100.0, 0.49)):
        taken = Counter(languages[row] for row in Mixture(languages, temperature, 0).rows(0, 1000))
        assert taken["yo"] / 1000 == pytest.approx(share, abs=0.02)


def test_a_row_s_own_draw_does_not_depend_on_where_one_starts():
    mixture = Mixture(["a"] * 7 + ["b"] * 5, 2.0, 3)
    whole = mixture.rows(0, 60)
    assert [*mixture.rows(0, 13), *mixture.rows(13, 40), *mixture.rows(53, 7)] == whole
    assert Mixture(["a"] * 7 + ["b"] * 5, 2.0, 3).rows(20, 9) == whole[20:29]


def test_a_short_run_measures_fewer_pairs(tmp_path):
    made = trainer(tmp_path, pairs=pairs(400))
    few, many = (
        Counter(pair["lang"] for pair in made.by_language._choose(made.table, steps)) for steps in (2, 10_000)
    )
    assert set(few) == set(many) == {"sw", "th"} and max(few.values()) <= 8 and 40 <= min(many.values()) <= 64


def test_contrastive_without_a_recording_is_a_warning(tmp_path, caplog):
    for record in ("true", "false"):
        trainer(tmp_path, None, english(), record_references=record)
        assert ("with the references of its own batch and process only" in caplog.text) == (record == "false")


def test_wrong_pairs_are_worse_than_right_ones_to_align_to(tmp_path):
    right, shifted = pairs(), pairs()
    shifted = shifted.remove_columns("reference").add_column(
        "reference", [*right["reference"][1:], right["reference"][0]]
    )
    errors = []
    for text in (right, shifted):
        made = trainer(tmp_path, {"align_loss": "standardized"}, pairs=text, num_train_epochs=30, learning_rate=2e-3)
        made.train()
        held = trainer(tmp_path / "held", {"align_loss": "standardized"}, pairs=pairs(16, seed=9), learning_rate=0.0)
        held.model.load_state_dict(made.model.state_dict())
        held.train()
        errors.append(sum(curve(held, "align_loss")))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"pairs": Dataset.from_dict({"source": ["x1"], "target": ["w1"]})},
            "parallel_dataset: prompt: no such column among source, target; nor text",
        ),
        ({"connection": {"connection": "none"}}, "connection: none reads no parallel text"),
        ({"align_first": 5, "max_steps": 5}, "align_first: 5 of max_steps: 5 leave no step"),
        ({"align_first": -1}, "align_first: expected at least 0"),
        ({"record_references": "true", "connection": {"reference_weights": "current"}}, "record_references: true"),
    ],
)
def test_what_cannot_be_is_one_line(options, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        trainer(tmp_path, options.pop("connection", None), english(), **options)
    assert "\n" not in str(raised.value)


def test_each_reference_is_a_row_of_its_own_once():
    given = {"prompt": ["a", "b", "c"], "reference": [None, "e", "e"], "lang": ["en", "sw", "sw"], "origin": ["1"] * 3}
    found = as_rows(Dataset.from_dict(given), "en")
    assert found["prompt"][:] == ["a", "b", "c", "e"] and found["lang"][:] == ["en", "sw", "sw", "en"]
    assert found["reference"][:] == [None, "e", "e", "e"]


def test_neither_rows_nor_text(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        CCTrainer(model(), CCConfig(str(tmp_path), report_to="none", use_cpu=True), processing_class=tokenizer())


def test_alignment_first_needs_both(tmp_path):
    with pytest.raises(UserError, match="align_first: there are no answered rows"):
        trainer(tmp_path, align_first=2)
    args = CCConfig(str(tmp_path), report_to="none", use_cpu=True, align_first=2)
    with pytest.raises(UserError, match="align_first: needs parallel text"):
        CCTrainer(model(), args, train_dataset=english(), processing_class=tokenizer())
