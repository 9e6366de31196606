"""Decay towards the base: the equation, what it leaves alone, and that a resumed run pulls to the same place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from cctuning import UserError
from cctuning.model.connected import ATTRIBUTE
from cctuning.training.callbacks import BaseDecay
from tests.training.test_trainer import losses, trainer, weights


def test_equation_on_one_weight():
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    pull = BaseDecay(module, decay=50.0)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, -2.0]]))
    pull.on_optimizer_step(None, None, None, model=module, optimizer=SimpleNamespace(param_groups=[{"lr": 0.01}]))
    torch.testing.assert_close(module.weight.detach(), torch.tensor([[2.0, -2.0]]))  # half of the way: 0.01 * 50


def test_it_draws_the_base_back_and_leaves_the_connection(tmp_path):
    free, held = trainer(tmp_path / "free"), trainer(tmp_path / "held", base_decay=1e6)
    before = weights(held)
    free.train(), held.train()
    for name, tensor in weights(held).items():
        if ATTRIBUTE in name:
            continue
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-7)
        assert not torch.equal(weights(free)[name], before[name]), name
    moved = [
        name for name, tensor in weights(held).items() if ATTRIBUTE in name and not torch.equal(tensor, before[name])
    ]
    assert moved, "the connection learns all the same"


@pytest.mark.parametrize("connection", [{}, {"reference_weights": "start"}], ids=["current", "start"])
@pytest.mark.parametrize("peft", [False, True])
def test_a_resumed_run_goes_back_to_the_same_start(peft, connection, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if peft else None
    options = {"connection": connection, "peft_config": lora, "base_decay": 20.0}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    saved = {"save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path / "cut", **options, **saved).train()
    resumed = trainer(tmp_path / "cut", **options, **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-5"))
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_negative_decay_is_one_line(tmp_path):
    with pytest.raises(UserError, match="base_decay: expected at least 0"):
        trainer(tmp_path, base_decay=-1.0)
