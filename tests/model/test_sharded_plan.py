"""The formulas of bench/scale_plan.py against models that exist."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.model.passes import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from scale_plan import Run, memory, traffic
from shapes import Shape, llama

SHAPE = Shape(layers=3, width=32, ffn=48, heads=4, kv_heads=2, vocab=64)


def connected(run: Run) -> ConnectedModel:
    model = llama(run.shape)
    if run.rank:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=run.rank, target_modules="all-linear"))
    options = {"transform_rank": run.transform_rank, "decision_rank": run.decision_rank or None}
    return ConnectedModel.attach(model, ConnectionConfig(**{"connection": "gated", **options}))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("decision_rank", [0, 8])
def test_weights_that_train_are_counted(rank, decision_rank):
    run = Run(SHAPE, 1, rank=rank, transform_rank=4, decision_rank=decision_rank)
    made = connected(run)
    trains = [p for p in made.model.parameters() if p.requires_grad]
    norms = 0 if rank else (2 * SHAPE.layers + 1) * SHAPE.width  # left out of the formulas
    assert sum(p.numel() for p in trains) == run.trained + norms
    assert sum(p.numel() for c in made.connections.values() for p in c.parameters()) == run.connection


def test_adam_and_gradients_take_what_the_plan_says():
    run = Run(SHAPE, 1, rank=4, transform_rank=4, decision_rank=8)
    made = connected(run)
    trains = [p for p in made.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, foreach=False)
    for parameter in trains:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    assert held == memory(run)["optimizer"]
    assert sum(p.grad.nbytes for p in trains) == memory(run)["gradients"]


def test_references_take_one_vector_a_layer():
    run = Run(SHAPE, 1, rank=0, references=2, reference=7, live=True)
    made = connected(run)
    ids = torch.randint(2, 64, (2, 7))
    recorded = made.reference_pass(Batch(ids, reference_input_ids=ids))
    tensors = [t for kept in recorded.memory.values() for t in kept if isinstance(t, torch.Tensor)]
    assert sum(t.nbytes for t in tensors) == 2 * memory(run)["references"]  # fp32 here, bf16 in the plan


def test_shares_and_traffic():
    one, eight = Run(SHAPE, 1, rank=0), Run(SHAPE, 8, rank=0)
    assert memory(eight)["optimizer"] * 8 == memory(one)["optimizer"]
    assert memory(eight)["activations"] == memory(one)["activations"]
    assert sum(traffic(one).values()) == 0
    for live, gathers in ((False, 2), (True, 3)):
        weights = traffic(replace(eight, live=live))["weights"]
        assert weights == gathers * 2 * (SHAPE.parameters + eight.connection) * 7 / 8
