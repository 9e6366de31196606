"""`reference_weights: start`: what is aligned to stands still, English too, and what it costs is kept to training."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.model.passes import Batch
from cctuning.training import CCConfig
from cctuning.training.launch import check_start, under_deepspeed
from tests.conftest import paired_batch, shake, tiny_llama
from tests.parity.test_invariants import assert_same, gradients
from tests.training.test_trainer import CURRENT, losses, rows, trainer

START = {"reference_weights": "start"}


def attach(model=None, **options) -> ConnectedModel:
    connected = ConnectedModel.attach(model or tiny_llama(), ConnectionConfig("gated", **START, **options))
    shake(connected)
    connected.keep_start()
    connected.total_steps = 2
    return connected.train()


def offered(connected: ConnectedModel, batch: dict, start: bool) -> list[torch.Tensor]:
    """What each layer keeps of the references."""
    plan = connected.reference_pass(Batch(*batch.values()), connected.start if start else None)
    return [memory[0] for _, memory in sorted(plan.results.memory.items())]


@pytest.mark.parametrize("tied", [False, True])
def test_references_run_through_the_model_as_it_was(tied, batch):
    model = tiny_llama(tie_word_embeddings=tied)
    connected = attach(model)
    before = offered(connected, batch, start=False)
    assert all(map(torch.equal, before, offered(connected, batch, start=True)))
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = {name: parameter.clone() for name, parameter in connected.named_parameters()}
    assert all(map(torch.equal, before, offered(connected, batch, start=True)))
    assert not any(map(torch.equal, before, offered(connected, batch, start=False)))
    for name, parameter in connected.named_parameters():
        assert torch.equal(parameter, trained[name]), name


def test_what_is_aligned_to_stands_still_under_dropout(batch):
    connected = attach(tiny_llama(attention_dropout=0.5))
    assert all(map(torch.equal, offered(connected, batch, start=True), offered(connected, batch, start=True)))
    assert not all(map(torch.equal, offered(connected, batch, start=False), offered(connected, batch, start=False)))
    assert all(module.training for module in connected.modules())


def test_new_tokens_of_tied_embeddings_train(tmp_path):
    """PEFT puts one module with their rows into the model under two names."""
    tokens = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=[*range(6, 30)])
    made = trainer(tmp_path, START, tokens, base=tiny_llama(layers=2, tie_word_embeddings=True), learning_rate=1e-2)
    name = next(name for name, _ in made.model.named_parameters() if "trainable_tokens_delta" in name)
    before = made.model.get_parameter(name).detach().clone()
    made.train()
    after = made.model.get_parameter(name)
    assert isinstance(after, torch.nn.Parameter) and not torch.equal(before, after)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("paths", ["sampled", "both", "student"])
def test_gradients_are_the_same_with_checkpointing(use_reentrant, paths, batch):
    connected = attach(paths=paths)
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.add_(0.01)
    connected.model.enable_input_require_grads()
    plain = gradients(connected, batch)
    connected.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(plain, gradients(connected, batch))


def test_a_row_that_is_its_own_parallel_draws_english_back():
    """Nothing while the model is where it started; afterwards a pull on every tuned layer, towards what it was."""
    batch = paired_batch(rows=2)
    prompt = batch["labels"][:, :-1].eq(-100) & batch["labels"][:, 1:].eq(-100) & batch["attention_mask"][:, 1:].bool()
    width = int(prompt.sum(dim=1).max()) + 1
    mask = torch.arange(width) <= prompt.sum(dim=1, keepdim=True)
    batch["reference_input_ids"] = batch["input_ids"][:, :width] * mask
    batch["reference_attention_mask"] = mask.long()
    batch["reference_index"] = torch.arange(2)
    options = {"decision": "fixed", "decision_value": 1.0, "transform": "none", "align_weight": 100.0}
    connected = attach(paths="student", **options)
    assert connected(**batch).align_loss < 1e-10
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.mul_(1.05)
    far = connected(**batch).align_loss
    assert far > 1e-3
    optimizer = torch.optim.Adam((p for p in connected.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        connected(**batch).loss.backward()
        optimizer.step()
    assert connected(**batch).align_loss < 0.5 * far


def test_the_trainer_pairs_rows_of_the_reference_language_with_themselves(tmp_path):
    own = trainer(tmp_path / "own", START)
    given = trainer(tmp_path / "given", CURRENT)
    mine, theirs = own.train_dataset, given.train_dataset
    english = [i for i, row in enumerate(theirs) if not row["reference_input_ids"]]
    assert english and any(row["reference_input_ids"] for row in theirs)
    for i in english:
        prompt = [token for token, label in zip(mine[i]["input_ids"], mine[i]["labels"], strict=True) if label == -100]
        assert mine[i]["reference_input_ids"] == prompt
    assert len(mine) == len(theirs) == len(rows())
    own.train()
    assert losses(own)[-1] < losses(own)[0]


def test_the_copy_is_one_and_of_what_trains_alone(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    made = trainer(tmp_path / "lora", START, peft_config=lora, base_decay=5.0, record_references="false")
    kept = made.connected.start.by_name
    assert kept and all("lora_" in name for name in kept)
    decay = next(one for one in made.callback_handler.callbacks if type(one).__name__ == "BaseDecay")
    assert decay.start is made.connected.start
    assert trainer(tmp_path / "current", CURRENT).connected.start is None


@pytest.mark.parametrize(
    ("connection", "settled"),
    [
        ({}, "start"),
        (CURRENT, "current"),
        ({"connection": "adaptive"}, "current"),
        ({"connection": "none"}, "current"),
    ],
)
def test_the_start_is_the_default_where_it_can_be_kept(connection, settled, tmp_path):
    for record in ("false", "auto"):
        made = trainer(tmp_path, connection, record_references=record)
        assert made.connected.config.reference_weights == settled
        assert (made.connected.start is not None) == (settled == "start" and record == "false")
        assert made.records == (settled == "start" and record == "auto")


def test_under_deepspeed_the_default_is_the_paper_s(monkeypatch):
    """Under FSDP2 it is the start: tests/parity/test_distributed_runs.py."""
    args = CCConfig("unused", use_cpu=True)
    assert not under_deepspeed(args)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert under_deepspeed(args)
    assert ConnectionConfig("gated").settled(start_kept=False).reference_weights == "current"
    assert (
        ConnectionConfig("gated", **START).settled(start_kept=False).reference_weights == "start"
    )  # and refused by name
    for option, decay in (("reference_weights", 0.0), ("base_decay", 1.0)):
        with pytest.raises(UserError, match=f"{option}: not supported under DeepSpeed"):
            check_start(decay, "current" if decay else "start", deepspeed=True)


def test_a_loop_of_one_s_own_goes_by_keep_start(batch):
    """Unset, references run through the model as it trains until its start is kept."""
    connected = ConnectedModel.attach(copy.deepcopy(tiny_llama()), ConnectionConfig("gated")).train()
    connected.total_steps = 2
    before = connected(**batch).align_loss
    connected.keep_start()
    assert torch.equal(before, connected(**batch).align_loss)
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.mul_(1.05)
    moved = connected(**batch).align_loss
    connected.start = None
    assert not torch.equal(moved, connected(**batch).align_loss)


def test_a_saved_connection_runs_as_ever(tmp_path, batch):
    """Of the copy nothing is saved: inference and evaluation run what was trained."""
    made = trainer(tmp_path / "run", START)
    made.train()
    made.save_model(str(tmp_path / "model"))
    again = ConnectedModel.from_pretrained(
        type(made.model).from_pretrained(tmp_path / "model"), tmp_path / "model"
    ).eval()
    assert again.start is None and again.config.reference_weights == "start"
    inputs = {name: batch[name] % 32 for name in ("input_ids", "reference_input_ids")} | {
        "reference_index": batch["reference_index"]
    }
    made.connected.eval()
    torch.testing.assert_close(again(**inputs).logits, made.connected(**inputs).logits)
    assert torch.isfinite(again(**inputs, labels=inputs["input_ids"]).loss)


def test_what_cannot_be_is_one_line(batch):
    with pytest.raises(UserError, match="start is not supported with connection: adaptive"):
        ConnectionConfig(**START, connection="adaptive")
    with pytest.raises(UserError, match="reference_weights: 'begin' is not one of"):
        ConnectionConfig("gated", reference_weights="begin")
    connected = ConnectedModel.attach(copy.deepcopy(tiny_llama()), ConnectionConfig("gated", **START)).train()
    connected.total_steps = 2
    with pytest.raises(UserError, match=r"call keep_start\(\) before the first step"):
        connected(**batch)
