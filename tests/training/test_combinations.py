"""Options together: each test crosses at least two that other tests look at alone."""

from __future__ import annotations

import json
import math
from collections import Counter, namedtuple

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig

from cctuning import CCTrainer, ConnectionConfig, UserError
from cctuning.data import load_rows
from cctuning.training import schedule
from cctuning.training.callbacks import SampleAnswers
from cctuning.training.schedule import Mixture, Schedule
from cctuning.training.summary import plan
from tests.cli.world import records, write_jsonl
from tests.conftest import tiny_llama
from tests.training import aligned, test_align_turns, test_trainer
from tests.training.aligned import Taken, curve, english, pairs
from tests.training.test_trainer import config, losses
from tests.training.toys import model, rows, tokenizer


def test_a_run_that_is_planned_again_keeps_its_order(tmp_path):
    """As where weights are sharded, whose references are recorded when the batches have been made."""
    made = aligned.trainer(tmp_path, None, english())
    loader = made.get_train_dataloader()
    made.make_recording()
    made.planned_steps()
    plan(made, {"merged": None, "lora": None})
    made._schedule.set_epoch(1)
    assert [batch["row"].tolist() for batch in loader] == [
        [made.table[row]["row"] for row in batch] for batch in made._schedule
    ]
    assert made.schedule() is made._schedule  # which takes long to make of many rows
    made.args.seed += 1
    assert made.schedule() is not made._schedule


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_packed_language_pack_reads_all_rows_before_any_comes_often(processes, parts):
    """A large language has fewer rows in a round than there are: the next epoch has others."""
    languages = ["sw"] * 300 + ["yo"] * 12
    lengths = [3 + place * 7 % 29 for place in range(len(languages))]
    mixture = Mixture(languages, 2.0, 0)
    assert sum(languages[row] == "sw" for row in mixture.round(0)) < 300
    taken: Counter = Counter()
    counts = set()
    for rank in range(processes):
        order = Schedule(
            lengths, 2, capacity=40, mixture=mixture, dp_size=processes, grad_accum=parts, rank=rank, drop_last=False
        )
        for epoch in range(3):
            order.set_epoch(epoch)
            batches = list(order)
            assert batches == list(order) and len(batches) == len(order) and all(batches)
            counts.add(len(batches))
            taken.update(row for batch in batches for row in batch if row < len(lengths))
    assert len(counts) == 1 and sum(taken.values()) == 3 * len(mixture)
    large = [taken[row] for row in range(300)]
    assert min(large) >= 1 and max(large) - min(large) <= 1


def test_bins_are_spread_or_halved():
    lengths = [9, 8, 7, 3, 2, 1]
    found = schedule._as_many([[0], [1], [2, 3], [4, 5]], 3, lengths)
    assert len(found) == 3 and sorted(place for one in found for place in one) == [*range(6)]
    assert max(sum(lengths[place] for place in one) for one in found) <= 12
    found = schedule._as_many([[0], [1, 2, 3], [4, 5]], 5, lengths)
    assert len(found) == 5 and all(found) and sorted(place for one in found for place in one) == [*range(6)]


def test_rounds_of_the_mixture_are_drawn_once_an_epoch(monkeypatch):
    """However many rounds the pairs beside shuffled rows come from."""
    drawn: Counter = Counter()
    draw = Mixture._round
    monkeypatch.setattr(Mixture, "_round", lambda self, number: (drawn.update([number]), draw(self, number))[1])
    order = Schedule([5] * 420, 4, mixture=Mixture(["sw"] * 20, 2.0, 0), answered=400, beside=3)
    assert len(list(order)) == 100 and len(drawn) == 60 and set(drawn.values()) == {1}


# -- evaluation and prediction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [{"connection": "none"}, {"connection": "gated", "align_loss": "standardized"}])
@pytest.mark.parametrize("padding_free", [False, True])
def test_predictions_are_of_the_rows_that_are_given(connection, padding_free, tmp_path):
    """After an evaluation of others, before training, with the rows' own losses and logits."""
    made = test_trainer.trainer(tmp_path, connection, padding_free=padding_free)
    asked = rows(11, seed=5)
    made.evaluate(rows(13, seed=4))
    found, wanted = made.predict(asked), made.evaluate(asked)
    for key in ("loss", "loss_en", "loss_qaa"):
        assert found.metrics[f"test_{key}"] == pytest.approx(wanted[f"eval_{key}"], rel=1e-6), key
    assert found.predictions.shape[:2] == found.label_ids.shape and len(found.label_ids) == 11
    logits, labels = torch.tensor(found.predictions[:, :-1]), torch.tensor(found.label_ids[:, 1:])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().long())
    assert float(loss) == pytest.approx(found.metrics["test_loss"], rel=1e-5)


def test_rows_without_numbers_are_evaluated_by_token_too(tmp_path):
    made = test_trainer.trainer(tmp_path)
    bare = rows(13, seed=4).remove_columns(["row", "origin"])
    for several in (bare, {"one": bare}):
        prefix = "eval" if several is bare else "eval_one"
        found, wanted = made.evaluate(several), made.evaluate(rows(13, seed=4))
        for key in ("loss", "loss_en", "loss_qaa"):
            assert found[f"{prefix}_{key}"] == pytest.approx(wanted[f"eval_{key}"], rel=1e-6), key


def test_data_sets_that_are_put_together_are_counted_whole(tmp_path):
    """Each numbers its rows from 0."""
    parts = [load_rows(write_jsonl(tmp_path / f"{n}.jsonl", records(8 + n)[n:]).as_posix())[0] for n in (0, 4)]
    made = test_trainer.trainer(tmp_path / "a", train=concatenate_datasets(parts))
    assert sorted(made.train_dataset["row"]) == [*range(16)] and len(made._origins) == 16
    whole = made.evaluate(concatenate_datasets(parts))["eval_loss"]
    tokens = [
        sum(
            sum(label != -100 for label in row)
            for row in made._prepare_dataset(part, made.processing_class, made.args, False, None, "eval")["labels"]
        )
        for part in parts
    ]
    each = [made.evaluate(part)["eval_loss"] for part in parts]
    assert whole == pytest.approx(sum(map(math.prod, zip(tokens, each, strict=True))) / sum(tokens), rel=1e-5)


def test_evaluation_rows_without_any_answer_are_an_error(tmp_path):
    unanswered = rows().map(lambda row: {"response": None})
    with pytest.raises(UserError, match=r"eval_dataset \(eval\): no row has an answer"):
        test_trainer.trainer(tmp_path).evaluate(unanswered)


def test_answers_to_conversations_are_to_the_whole_conversation(tmp_path):
    made = test_align_turns.trainer(tmp_path / "run", "all", test_align_turns.conversations(3))
    answered = [row for row in test_align_turns.conversations(3) if row["response"]]
    whole = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": row["response"]}], "lang": row["lang"]}
        for row in answered
    ]
    made.eval_dataset = made._prepare_dataset(
        Dataset.from_list(whole), made.processing_class, made.args, False, None, "eval"
    )
    samples = SampleAnswers(made, tmp_path / "samples.jsonl", 2)
    samples.on_evaluate(made.args, made.state, made.control)
    lines = [json.loads(line) for line in samples.path.read_text().splitlines()]
    asked = {" ".join(turn["content"] for turn in row["prompt"]): row["response"].strip() for row in answered}
    assert len(lines) == 4
    for line in lines:
        said = line["prompt"]
        for token in ("<user>", "<assistant>", "<end>"):
            said = said.replace(token, " ")
        assert asked[" ".join(said.split())] == line["expected"]


# -- recorded references ---------------------------------------------------------------------------------------------


def test_a_recording_that_is_there_needs_no_room(tmp_path, monkeypatch):
    """Else a run that is resumed on the disk it has filled would go on with other references."""
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    first = aligned.trainer(tmp_path / "a", None, english())
    first.make_recording()
    full = namedtuple("usage", "total used free")(1, 1, 0)
    monkeypatch.setattr("cctuning.model.recorded.shutil.disk_usage", lambda path: full)
    again = aligned.trainer(tmp_path / "b", None, english())
    assert again.recording.whole and again.connected.config.reference_weights == "start"
    assert not again.recording.in_memory
    other = aligned.trainer(tmp_path / "c", None, english(), pairs=pairs(seed=7))
    assert other.recording.in_memory


def test_a_recording_is_of_one_config_and_one_scale(tmp_path, monkeypatch):
    """Two models may have the same weights, and differ in how these are used."""

    def file(base=None, alpha=None, **options):
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=alpha, target_modules="all-linear") if alpha else None
        monkeypatch.setattr(aligned, "model", lambda: base or model())
        return aligned.trainer(tmp_path, None, english(), peft=lora, **options).recording.file()

    turned = tiny_llama(layers=2, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    files = {file(), file(turned), file(alpha=4), file(alpha=8)}
    assert len(files) == 4 and file(alpha=8, learning_rate=1e-5) in files
    edited = model()
    edited.get_input_embeddings().weight.data[7, 3] += 1
    assert file(edited) not in files and file(model()) in files


def test_a_sharded_run_s_recording_is_of_its_rows(tmp_path):
    """Rows may be corrected between a run's start and its resumption, and be as many as before."""
    made = [aligned.trainer(tmp_path, None, english(), pairs=pairs(seed=seed)) for seed in (1, 2, 1)]
    for one in made:
        one.recording.sharded = True
    files = [one.recording.file() for one in made]
    assert files[0] == files[2] != files[1] and tmp_path in files[0].parents


def test_a_resumed_run_is_measured_against_its_start(tmp_path, caplog, monkeypatch):
    """Its table has what was measured before training, and it warns at step 50 as an unbroken run does."""
    monkeypatch.setattr("cctuning.training.callbacks.LOOK_AT", 3)
    monkeypatch.setattr("cctuning.training.callbacks.MOVED", 0.9)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = aligned.trainer(tmp_path / "whole", **options)
    whole.train()
    assert "does not fall" in caplog.text
    caplog.clear()
    for name, warns in (("resumed", True), ("other pairs", False)):
        rest = aligned.trainer(tmp_path / name, **options)
        rest.make_recording()
        if name == "other pairs":
            rest.by_language.languages = rest.by_language.languages[1:]
            monkeypatch.setattr(rest.by_language, "_measure", dict)
        rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert ("does not fall" in caplog.text) == warns
        caplog.clear()
        assert rest.by_language.before == (whole.by_language.before if warns else {})
        assert rest.by_language.as_dict() == (whole.by_language.as_dict() if warns else None)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_saved_alone_the_best_weights_are_kept(tune, tmp_path):
    """`save_only_model` with `load_best_model_at_end`, a LoRA and the connection."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", use_dora=True)
    options = {
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "max_steps": 12,
    }
    options |= {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 3,
        "eval_steps": 3,
    }
    made = CCTrainer(
        model(),
        config(tmp_path, **options, learning_rate=0.3, padding_free=True),
        ConnectionConfig("gated"),
        train_dataset=rows(),
        eval_dataset=rows(9, seed=4),
        processing_class=tokenizer(),
        peft_config=lora if tune == "lora" else None,
    )
    made.train()
    best = min(curve(made, "eval_loss"))
    assert made.state.best_metric == pytest.approx(best) and made.evaluate()["eval_loss"] == pytest.approx(
        best, rel=1e-5
    )


def test_a_bfloat16_base_without_autocast(tmp_path):
    """Aligned, packed, with accumulated steps and parallel text: the curve of fp32, within its rounding."""
    curves = []
    for kind in (torch.float32, torch.bfloat16):
        for connection in ({}, {"connection": "gated", "align_loss": "standardized"}):
            lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
            options = {"packing": True, "max_length": 40, "gradient_accumulation_steps": 2, "peft": lora}
            torch.manual_seed(0)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(aligned, "model", lambda kind=kind: model().to(kind))
                made = aligned.trainer(tmp_path, connection, rows(), **options)
            made.train()
            curves.append(curve(made))
    for exact, rounded in zip(curves[:2], curves[2:], strict=True):
        assert rounded == pytest.approx(exact, rel=0.03)


def test_epochs_and_steps_of_a_packed_run_that_aligns_first(tmp_path):
    """`max_steps` that end in the middle of the second epoch: the steps of as many epochs, cut off."""
    options = {"packing": True, "max_length": 40, "align_first": 2, "gradient_accumulation_steps": 2}
    epochs = aligned.trainer(tmp_path / "a", None, english(), num_train_epochs=3, **options)
    through = Taken(epochs)
    epochs.train()
    at = 2 + epochs.schedule().steps_an_epoch + 1
    steps = aligned.trainer(tmp_path / "b", None, english(), max_steps=at, **options)
    after = Taken(steps)
    steps.train()
    assert steps.state.global_step == at < epochs.state.max_steps
    assert after.steps == {step: batch for step, batch in through.steps.items() if step <= at}


@pytest.mark.parametrize("connection", ["align", "gated", "adaptive", "none"])
def test_noise_on_the_embeddings(connection, tmp_path):
    """NEFTune's hook expects a batch of sequences; evaluation and the saved model have no noise."""
    found = {}
    for alpha in (None, 5.0):
        args = config(tmp_path / str(alpha), max_steps=3, logging_steps=1, neftune_noise_alpha=alpha)
        made = CCTrainer(
            model(),
            args,
            ConnectionConfig(connection=connection),
            train_dataset=rows(16),
            eval_dataset=rows(8),
            processing_class=tokenizer(),
        )
        before = made.evaluate()["eval_loss"]
        made.train()
        found[alpha] = [before, *losses(made)]
    assert found[None][0] == found[5.0][0] and found[None][1:] != found[5.0][1:]
