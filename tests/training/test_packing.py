"""Runs with padding_free and packing: the same run as padded, each row once an epoch, and exact to resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cctuning import CCTrainer, UserError
from cctuning.training.schedule import Mixture, Schedule
from cctuning.training.summary import doubts, plan
from tests.model.test_packing import varlen
from tests.training import aligned, test_trainer
from tests.training.aligned import curve, english
from tests.training.test_trainer import config, weights
from tests.training.toys import model, rows

RECIPES = {
    "none": {"connection": "none"},
    "align": {"align_loss": "contrastive"},
    "standardized": {"align_loss": "standardized", "align_pool": "text_last"},
    "gated": {"connection": "gated"},
    "student": {"connection": "gated", "paths": "student", "align_loss": "standardized"},
    "adaptive": {"connection": "adaptive"},
    "live": {"connection": "gated", "reference_weights": "current"},
}
LOGGED = (
    "loss",
    "lm_loss",
    "student_loss",
    "fused_loss",
    "align_loss",
    "mean_token_accuracy",
    "num_tokens",
    "grad_norm",
)
PACKED = {"packing": True, "max_length": 40, "per_device_train_batch_size": 2}


def made(folder: Path, recipe: str = "align", **options) -> tuple[CCTrainer, dict[int, list[int]]]:
    """A run, with parallel text beside its rows if the recipe reads it, and the rows of each step as it goes."""
    if recipe in ("none", "adaptive"):
        peft = options.pop("peft", None)
        run = test_trainer.trainer(folder, RECIPES[recipe], peft, **{"max_steps": -1, **options})
    else:
        answered = english() if recipe == "align" else rows()
        run = aligned.trainer(folder, RECIPES[recipe], answered, **options)
    taken: dict[int, list[int]] = {}
    loss = run.compute_loss

    def watched(module, inputs, *args, **kwargs):
        if module.training:
            taken.setdefault(run.state.global_step, []).extend(inputs["row"].tolist())
        return loss(module, inputs, *args, **kwargs)

    run.compute_loss = watched
    return run, taken


def epochs(taken: dict[int, list[int]], a_step: int) -> list[Counter]:
    found = [Counter() for _ in range(-(-len(taken) // a_step))]
    for step, batch in taken.items():
        found[step // a_step].update(batch)
    return found


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_padding_free_is_the_same_run(recipe, tune, tmp_path):
    """With accumulated steps and an evaluation."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if tune == "lora" else None
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "optim": "sgd", "peft": lora}
    padded, taken = made(tmp_path / "a", recipe, **options)
    packed, again = made(tmp_path / "b", recipe, padding_free=True, **options)
    assert packed.args.padding_free and packed.connected.padding_free
    padded.train(), packed.train()
    assert taken == again and len(curve(padded)) >= 4
    for key in LOGGED:
        assert curve(packed, key) == pytest.approx(curve(padded, key), rel=1e-5, abs=1e-7), key
    expected, found = (run.evaluate(rows(9, seed=4)) for run in (padded, packed))
    for key in ("eval_loss", "eval_loss_en", "eval_loss_qaa"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"padding_free": True}, PACKED, {**PACKED, "align_first": 2}],
    ids=["padding_free", "packing", "align_first"],
)
@pytest.mark.parametrize("recipe", ["align", "gated", "none"])
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(recipe, options, checkpointing, tmp_path):
    if "align_first" in options and recipe == "none":
        pytest.skip("connection: none reads no parallel text")
    options = {**options, "num_train_epochs": 3, "gradient_checkpointing": checkpointing}
    whole, through = made(tmp_path / "whole", recipe, **options)
    whole.train()
    at = whole.state.max_steps // 2  # in the middle of an epoch
    saving = {"save_strategy": "steps", "save_steps": at}
    made(tmp_path / "cut", recipe, **options, **saving)[0].train()
    resumed, after = made(tmp_path / "cut", recipe, **options, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{at}"))
    assert after == {step: batch for step, batch in through.items() if step >= at}
    assert curve(resumed) == curve(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("recipe", ["none", "align", "gated"])
def test_packing_takes_each_row_once_an_epoch(recipe, parts, workers, tmp_path):
    """And with it as many pairs as without; in fewer, fuller batches."""
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": parts, "dataloader_num_workers": workers}
    run, taken = made(tmp_path / "a", recipe, **options, **PACKED)
    run.train()
    plain, others = made(tmp_path / "b", recipe, **options, per_device_train_batch_size=2)
    plain.train()
    found = epochs(taken, run.state.max_steps // 2)
    assert len(taken) == run.state.max_steps <= plain.state.max_steps - (parts == 1)
    answered = set(run.train_dataset["row"])
    assert [Counter(row for row in epoch.elements() if row in answered) for epoch in found] == [Counter(answered)] * 2
    assert found == epochs(others, plain.state.max_steps // 2)
    assert found[0] != found[1] or recipe == "none"  # with other pairs
    assert taken[0] != taken[run.state.max_steps // 2]  # and in another order


def test_a_packed_step_weighs_its_rows_as_one_batch_of_them(tmp_path):
    """Tokens and rows of an accumulated step are counted over all its bins, however many rows are in each."""
    ends = []
    for bins, parts in ((6, 1), (2, 3)):
        options = {**PACKED, "per_device_train_batch_size": bins, "gradient_accumulation_steps": parts}
        run, taken = made(tmp_path / str(bins), "align", num_train_epochs=1, optim="sgd", **options)
        run.train()
        ends.append((weights(run), {step: sorted(batch) for step, batch in taken.items()}))
    assert ends[0][1] == ends[1][1]
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("count", [11, 29, 60, 61])
def test_packed_batches_hold_each_row_once(count, parts, processes):
    """Of all processes together, but for the fillers; each has as many batches as the others, in every epoch."""
    lengths = [1 + place * 7 % 19 for place in range(count)]
    for drop_last in (False, True):
        taken: Counter = Counter()
        counts = set()
        for rank in range(processes):
            options = {"dp_size": processes, "grad_accum": parts, "rank": rank, "seed": 3, "drop_last": drop_last}
            order = Schedule(lengths, 2, capacity=40, **options)
            for epoch in range(3):
                order.set_epoch(epoch)
                batches = list(order)
                assert batches == list(order) and len(batches) == len(order)
                assert all(batches) and all(sum([*lengths, 1][row] for row in batch) <= 80 for batch in batches)
                counts.add(len(batches))
                taken.update(row for batch in batches for row in batch if row < count)
        assert len(counts) == 1 and max(taken.values(), default=0) <= 3
        assert drop_last or taken == Counter(dict.fromkeys(range(count), 3))


def test_bins_of_a_language_pack_are_filled():
    """No parallel rows stand beside others, so none have to fit in a bin with them."""
    order = Schedule([10] * 24, 2, capacity=40, mixture=Mixture(["sw"] * 24, 2.0, 0), answered=0, beside=3)
    assert [len(batch) for batch in order] == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped cuts rows"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing_strategy: bfd_split cuts rows"),
        ({"packing": True, "eval_packing": True}, "eval_packing: not supported"),
        ({"packing": True, "max_length": None}, "packing: needs max_length"),
        ({"truncation_mode": "keep_end"}, "truncation_mode: rows are cut at their end only"),
        ({"dataset_text_field": "content"}, "dataset_text_field: rows have a prompt and a response"),
        ({"packing": True, "train_sampling_strategy": "sequential"}, "train_sampling_strategy: sequential"),
        ({"padding_free": True, "pad_to_multiple_of": 8}, "pad_to_multiple_of: there is no padding"),
    ],
)
def test_options_that_are_excluded(options, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        config(tmp_path, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("length", "expected"), [(40, False), (12, True)])
def test_bins_that_hold_one_row_are_noted(length, expected, tmp_path):
    run, _ = made(tmp_path, "none", **{**PACKED, "max_length": length}, num_train_epochs=4)
    found, lines = plan(run, {"merged": None, "lora": None})
    run.train()
    assert found.steps == run.state.max_steps and "about" in "".join(lines)
    assert any("raise max_length" in doubt for doubt in doubts(found, run.args)) == expected


@pytest.mark.parametrize("recipe", ["align", "gated", "adaptive"])
def test_fp32_weights_under_bf16_autocast_with_flash_attention(recipe, tmp_path, monkeypatch):
    """FlashAttention runs no fp32: transformers casts to the dtype of autocast, and fails outside of it."""

    def flash(module, query, *args, **kwargs):
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return varlen(module, query, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    base = model()
    base.config._attn_implementation = "flash_attention_2"
    for module in (test_trainer, aligned):
        monkeypatch.setattr(module, "model", lambda: base)
    run, _ = made(tmp_path, recipe, padding_free=True, bf16=True, num_train_epochs=1)
    assert run.model.config._attn_implementation == "flash_attention_2"
    run.train()
    assert all(loss == loss for loss in curve(run))
