"""Each row once an epoch, whatever is resumed, evaluated or drawn between, in every order there is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from cctuning import CCTrainer, ConnectionConfig
from cctuning.training.metrics import undisturbed
from cctuning.training.schedule import Schedule
from tests.training.test_trainer import config, losses, weights
from tests.training.toys import model, rows, tokenizer

ROWS = 26  # of batches of 4: the last of an epoch has two
STRATEGIES = ("random", "group_by_length", "sequential")


class Taken(TrainerCallback):
    """The rows of each optimiser step, as the trainer hands them to the loss."""

    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[state.global_step] = self.batch
        self.batch = []

    batch: list[int] = []


def made(path, strategy, evaluating=False, workers=0, **options) -> tuple[CCTrainer, Taken]:
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.3, target_modules="all-linear")
    taken = Taken()
    watching = {"eval_strategy": "steps", "eval_steps": 2} if evaluating else {}
    options = {"train_sampling_strategy": strategy, "dataloader_num_workers": workers, **watching, **options}
    trainer = CCTrainer(
        model(),
        config(path, **{"max_steps": -1, "num_train_epochs": 3, **options}),
        ConnectionConfig(),
        train_dataset=rows(ROWS),
        eval_dataset=rows(7, seed=3) if evaluating else None,
        processing_class=tokenizer(),
        peft_config=lora,
        callbacks=[taken],
    )
    loss = trainer.compute_loss

    def watched(module, inputs, *args, **kwargs):
        if module.training:
            taken.batch = [*taken.batch, *inputs["row"].tolist()]
        return loss(module, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    return trainer, taken


def epochs(steps: dict[int, list[int]], per_epoch: int) -> list[Counter]:
    found = [Counter() for _ in range(-(-max(steps) // per_epoch))]
    for step, taken in steps.items():
        found[(step - 1) // per_epoch].update(taken)
    return found


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_in_the_second_epoch_each_row_comes_once(strategy, parts, tmp_path):
    """With evaluations between and dropout; and the run ends with the same weights as one that was not cut off."""
    options = {"gradient_accumulation_steps": parts}
    whole, through = made(tmp_path / "whole", strategy, **options)
    whole.train()
    steps = whole.state.max_steps
    per_epoch = steps // 3
    at = per_epoch + max(1, per_epoch // 2)  # in the middle of the second epoch
    saving = {"save_strategy": "steps", "save_steps": at, "evaluating": True}
    cut, before = made(tmp_path / "cut", strategy, **options, **saving)
    cut.train()
    resumed, after = made(tmp_path / "cut", strategy, **options, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{at}"))
    assert before.steps == through.steps, "evaluation changed the order of training"
    joined = {step: taken for step, taken in through.steps.items() if step <= at} | after.steps
    assert {step: sorted(taken) for step, taken in joined.items()} == {
        step: sorted(taken) for step, taken in through.steps.items()
    }
    assert epochs(joined, per_epoch) == [Counter(range(ROWS))] * 3
    assert losses(resumed) == losses(whole) == losses(cut)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_workers_change_nothing(strategy, tmp_path):
    alone, one = made(tmp_path / "a", strategy, max_steps=10)
    alone.train()
    several, two = made(tmp_path / "b", strategy, workers=2, evaluating=True, max_steps=10)
    several.train()
    assert one.steps == two.steps and losses(alone) == losses(several)
    saving = {"save_strategy": "steps", "save_steps": 9, "workers": 2, "evaluating": True, "max_steps": 10}
    made(tmp_path / "c", strategy, **saving)[0].train()
    resumed, rest = made(tmp_path / "c", strategy, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "c" / "checkpoint-9"))
    assert rest.steps == {10: two.steps[10]} and losses(resumed) == losses(several)


def order(lengths, strategy="random", processes=1, parts=1, rank=0, seed=1, drop_last=False):
    options = {"dp_size": processes, "grad_accum": parts, "rank": rank, "seed": seed, "drop_last": drop_last}
    return Schedule(lengths, 4, strategy=strategy, **options)


def test_epochs_and_seeds_differ():
    lengths = [3 + place % 5 for place in range(40)]
    for strategy in ("random", "group_by_length"):
        orders = []
        for seed, epoch in ((1, 0), (1, 1), (5, 0)):
            made = order(lengths, strategy, seed=seed, parts=2)
            made.set_epoch(epoch)
            torch.rand(epoch + 1)  # what others draw is nothing to it
            orders.append([row for batch in made for row in batch])
            assert [row for batch in made for row in batch] == orders[-1] and sorted(orders[-1]) == list(range(40))
        assert orders[0] != orders[1] and orders[0] != orders[2]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 12, 13, 17, 19, 24, 25])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_hold_each_row_once(strategy, count, processes):
    """Of all processes together, but for the filler; each has as many batches as the others."""
    taken: Counter = Counter()
    batches = []
    for rank in range(processes):
        made = order([1 + place % 7 for place in range(count)], strategy, processes, 2, rank)
        made.set_epoch(1)
        batches.append(list(made))
        assert len(batches[-1]) == len(made) and all(batches[-1])
        taken.update(row for batch in batches[-1] for row in batch if row < count)
    assert len(set(map(len, batches))) == 1 and taken == Counter(range(count))
    if strategy == "sequential":  # process p takes the p-th batch of each round
        assert [row for together in zip(*batches, strict=True) for batch in together for row in batch][:count] == list(
            range(count)
        )


def test_incomplete_batches_are_dropped_on_request():
    for rank in range(2):
        made = order([1] * 19, "sequential", 2, 1, rank, drop_last=True)
        assert list(made) == [list(range(8 * place + 4 * rank, 8 * place + 4 * rank + 4)) for place in range(2)]


def test_evaluation_gives_the_generators_back():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with undisturbed():
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)
