"""`align_turns` in training: conversations in another language beside English ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from cctuning import CCTrainer, ConnectedModel, ConnectionConfig, UserError
from cctuning.training import CCConfig
from tests.training.aligned import curve
from tests.training.test_packing import PACKED
from tests.training.test_trainer import weights
from tests.training.toys import model, tokenizer


def conversations(turns: int = 2, count: int = 16) -> Dataset:
    """Every other row in `x` words with its parallel in `w` words, and every fourth without an answer."""
    draw = random.Random(0)
    made = []
    for i in range(count):
        picks = [[draw.randrange(26) for _ in range(2 + (i + turn) % 4)] for turn in range(turns)]
        sides = [
            [
                {"role": role, "content": " ".join(f"{letter}{p}" for p in pick)}
                for pick in picks
                for role, letter in (("user", side), ("assistant", "w"))
            ][:-1]
            for side in "xw"
        ]
        foreign = i % 2 == 0
        answer = None if i % 4 == 0 else f" w{picks[-1][0]}"
        made.append({"prompt": sides[0 if foreign else 1], "response": answer, "lang": "qaa" if foreign else "en"})
        made[-1]["reference"] = sides[1] if foreign else None
    return Dataset.from_list(made)


def trainer(folder: Path, turns: str, rows: Dataset | None = None, peft: bool = False, **options) -> CCTrainer:
    given = {"per_device_train_batch_size": 4, "learning_rate": 5e-3, "num_train_epochs": 2, "logging_steps": 1}
    given |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    torch.manual_seed(0)
    return CCTrainer(
        model(),
        CCConfig(str(folder), **{**given, **options}),
        ConnectionConfig(layers=[0, 1], align_turns=turns),
        train_dataset=conversations() if rows is None else rows,
        processing_class=tokenizer(chat=True),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if peft else None,
    )


@pytest.mark.parametrize("record", ["true", "false"])
def test_it_changes_conversations_alone(record, tmp_path):
    runs = {}
    for turns in ("all", "last"):
        for count in (1, 2):
            made = trainer(tmp_path / f"{turns}{count}", turns, conversations(count), record_references=record)
            made.train()
            runs[turns, count] = curve(made, "align_loss"), curve(made, "lm_loss")
    assert runs["all", 1] == runs["last", 1]
    assert runs["all", 2][0][0] != runs["last", 2][0][0]
    assert runs["all", 2][1][0] == runs["last", 2][1][0]  # before the first step the loss of answers is the same


def test_a_recording_is_not_taken_for_the_other_turns(tmp_path):
    """With references kept in the same folder, as when a run starts again with another value."""
    first = {}
    for turns in ("all", "last", "all"):
        made = trainer(tmp_path, turns, record_references="true")
        made.train()
        assert first.setdefault(turns, curve(made)) == curve(made)
    assert first["all"] != first["last"]


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("options", [{}, {"padding_free": True}, PACKED], ids=["padded", "padding_free", "packing"])
def test_it_resumes_exactly_and_needs_no_padding(options, peft, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "a", "last", peft=peft, **options, **saving)
    whole.train()
    resumed = trainer(tmp_path / "a", "last", peft=peft, **options, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert curve(resumed) == curve(whole) and len(curve(whole)) > 3
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    if options == {"padding_free": True}:
        padded = trainer(tmp_path / "b", "last", peft=peft)
        padded.train()
        assert curve(whole) == pytest.approx(curve(padded), rel=1e-4)
    whole.save_model(str(tmp_path / "model"))
    if not peft:  # the option is training's: what comes out is a plain model
        assert not list((tmp_path / "model").glob("connection_*"))


def test_a_wrong_value_is_an_error():
    with pytest.raises(UserError, match="align_turns: 'first' is not one of all, last"):
        ConnectionConfig(align_turns="first")
    assert ConnectedModel.attach(model(), ConnectionConfig(align_turns="last")).config.align_turns == "last"
