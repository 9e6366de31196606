"""What the benchmarks of training run on: a tokenizer of numbered words, rows of them, and either trainer on them.

Rows have exactly the lengths asked for: a word is a token. Nothing is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from cctuning import CCConfig, CCTrainer, ConnectionConfig


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Words `w2` to `w<vocab - 1>`, a token each."""
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, vocab)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<pad>", "<end>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")
    made.init_kwargs = {}
    return made


def rows(count: int, tokens: int, answer: int, reference: int, vocab: int, shared: int = 1, seed: int = 0) -> Dataset:
    """Rows of `tokens` (the last `answer` of them response, its end mark included) with references of `reference`
    tokens, each of which `shared` rows in a row have in common."""
    draw = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(2, min(vocab, 5000))}" for _ in range(number))

    english = ""
    made: dict[str, list[Any]] = {"prompt": [], "completion": [], "prompt_en": [], "lang": []}
    for number in range(count):
        if number % shared == 0:
            english = words(reference)
        for column, value in zip(
            made,
            (words(tokens - answer), " " + words(answer - 1), english, f"qa{chr(97 + number % shared)}"),
            strict=True,
        ):
            made[column].append(value)
    return Dataset.from_dict(made)


def options(folder: Path, batch: int, **more: Any) -> dict[str, Any]:
    """Arguments that both trainers take."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "max_steps": 100,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10**6,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": None,
        "bf16": False,
        "shuffle_dataset": False,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        **more,
    }


def trl(model: Any, data: Dataset, made: Any, folder: Path, batch: int, peft: Any = None, **more: Any) -> SFTTrainer:
    """TRL's trainer on the rows without their references."""
    args = SFTConfig(**options(folder, batch, **more))
    plain = data.select_columns(["prompt", "completion"])
    return SFTTrainer(model=model, args=args, train_dataset=plain, processing_class=made, peft_config=peft)


def ours(
    model: Any,
    data: Dataset,
    made: Any,
    folder: Path,
    batch: int,
    connection: ConnectionConfig,
    peft: Any = None,
    **more: Any,
) -> CCTrainer:
    """CCTrainer on the rows."""
    args = CCConfig(**options(folder, batch, **more))
    return CCTrainer(model, args, connection, train_dataset=data, processing_class=made, peft_config=peft)


def stepper(trainer: Any, checkpointing: str | None = None) -> Callable[[], Any]:
    """One optimiser step of `trainer` a call: the batch from its own loader and collator, its own `training_step`,
    clipping, optimiser. What `train()` does besides (logging, callbacks, checkpoints) is the same for both trainers
    and would only hide the difference; `train()` itself cannot be stopped after a step to let the rival run.

    Args:
        checkpointing: None (off), `reentrant` or `not reentrant`.
    """
    if isinstance(trainer, CCTrainer):
        trainer.make_recording()  # as train() does
    model = trainer.model.train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    model = trainer.accelerator.prepare_model(model)  # autocast, as train() does
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps, trainer.state.global_step = 100, 50  # `sampled`: half of the rows are fused
    loader = trainer.get_train_dataloader()

    def forever() -> Iterator[Any]:
        while True:
            yield from loader

    batches = forever()

    def step() -> float:
        (batch,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        loss = trainer.training_step(model, batch, items)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(loss)

    return step
