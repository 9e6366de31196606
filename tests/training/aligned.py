"""A small run with parallel text, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from cctuning import CCTrainer, ConnectionConfig
from cctuning.training import CCConfig
from tests.training.toys import model, rows, tokenizer


def pairs(count: int = 24, seed: int = 1) -> Dataset:
    """Sentences in `x` words and in `w` words, of two languages."""
    draw = random.Random(seed)
    picks = [[draw.randrange(26) for _ in range(3 + i % 5)] for i in range(count)]
    text, reference = ([" ".join(f"{side}{p}" for p in pick) for pick in picks] for side in "xw")
    return Dataset.from_dict(
        {"text": text, "reference": reference, "lang": ["sw" if i % 4 else "th" for i in range(count)]}
    )


def english() -> Dataset:
    """Answered rows in the reference language alone, without a column for references."""
    return rows().filter(lambda row: row["lang"] == "en").remove_columns("reference")


def trainer(folder: Path, connection: dict | None = None, answered: Dataset | None = None, **options) -> CCTrainer:
    chat, text, peft = options.pop("chat", False), options.pop("pairs", None), options.pop("peft", None)
    given = {"per_device_train_batch_size": 2, "learning_rate": 5e-3, "num_train_epochs": 2, "logging_steps": 1}
    given |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "parallel_rows": 2}
    torch.manual_seed(0)
    return CCTrainer(
        model(),
        CCConfig(str(folder), **{**given, **options}),
        ConnectionConfig(**{"layers": [0, 1], "align_weight": 1.0, **(connection or {})}),
        train_dataset=answered,
        parallel_dataset=pairs() if text is None else text,
        processing_class=tokenizer(chat),
        peft_config=peft,
    )


def curve(made: CCTrainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in made.state.log_history if key in entry]


class Taken(TrainerCallback):
    """Ids of the rows of each optimizer step, and the epoch that it is logged with."""

    def __init__(self, made: CCTrainer) -> None:
        self.steps, self.epochs, self.batch = {}, {}, []
        loss = made.compute_loss

        def watched(module, inputs, *args, **kwargs):
            if module.training:
                answered = (inputs["labels"] != -100).any(dim=1).tolist()
                self.batch += zip(inputs["row"].tolist(), answered, strict=True)
            return loss(module, inputs, *args, **kwargs)

        made.compute_loss = watched
        made.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[state.global_step], self.batch = self.batch, []

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.epochs[state.global_step] = logs["epoch"]
