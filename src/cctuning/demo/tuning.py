"""Tuning a base and asking it: what the demo and the lab's cells both do, through the public API alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cctuning.connection import ConnectionConfig
from cctuning.demo.worlds import ENGLISH, World
from cctuning.model.loading import Loaded
from cctuning.serving.answering import Answerer
from cctuning.training import CCConfig
from cctuning.training.options import RunOptions

OF_TRAINER = ("learning_rate", "num_train_epochs", "connection_lr_scale", "base_decay")


def options(
    base: Path,
    rows: Path,
    run: Path,
    method: Mapping[str, Any],
    seed: int,
    trained: Mapping[str, Any] | None = None,
    **run_options: Any,
) -> tuple[RunOptions, ConnectionConfig, CCConfig]:
    """The options of a run, as `cctuning train` would parse them.

    Args:
        method: options of the connection, and those of `OF_TRAINER`. trained: options of the trainer in place of the
            lab's. run_options: further ones of `RunOptions`.
    """
    chosen: dict[str, Any] = {"per_device_train_batch_size": 32, "max_length": 64, **(trained or {})}
    args = CCConfig(
        str(run),
        lr_scheduler_type="cosine",
        warmup_steps=10,
        activation_checkpointing=False,
        logging_steps=0.1,
        save_strategy="no",
        report_to="none",
        seed=seed,
        **chosen,
        **{name: value for name, value in method.items() if name in OF_TRAINER},
    )
    return RunOptions(model=str(base), data=[str(rows)], **run_options), connection(method), args


def connection(method: Mapping[str, Any]) -> ConnectionConfig:
    """The connection that `method` asks for, its defaults filled in; references run as the paper's unless it says."""
    asked = {name: value for name, value in method.items() if name not in OF_TRAINER}
    return ConnectionConfig(**{"connection": "gated", "reference_weights": "current", **asked})


def right(
    loaded: Loaded,
    world: World,
    split: str,
    bypass: bool = False,
    live: bool = False,
    languages: Iterable[str] | None = None,
) -> dict[str, list[bool]]:
    """Per language, which questions of `split` the model answers exactly right, greedily.

    Args:
        bypass: without the connection's transform. live: handed the English question, over the live connection.
        languages: those asked; all, if not given.
    """
    if torch.accelerator.is_available():
        module: Any = loaded.connected or loaded.model
        module.to(torch.accelerator.current_accelerator())
    # One token more than an answer has: a model that goes on after it has not answered.
    answerer = Answerer(loaded, chat=False, bypass=bypass, batch_size=256, max_new_tokens=world.answer_tokens + 1)
    flags = {}
    for lang in world.languages if languages is None else languages:
        items = world.items(lang, split)
        parallels: Any = [item.prompt_en for item in items] if live and lang != ENGLISH else None
        given = answerer([item.prompt for item in items], parallels, languages=[lang] * len(items))
        flags[lang] = [answer == item.answer for answer, item in zip(given, items, strict=True)]
    return flags
