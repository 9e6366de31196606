"""Run a training: from options to a run directory with all that is needed to repeat it.

    RUN/config.yaml      every option that differs from its default; `cctuning train --config` runs it again
    RUN/run.json         status, versions, seed, data fingerprints, counts, rows left out
    RUN/metrics.jsonl    one line per log step
    RUN/samples.jsonl    answers to a few evaluation prompts at each evaluation
    RUN/train.log        the libraries' log, from the first step on
    RUN/checkpoint-N/    checkpoints
    RUN/model/           the result: weights or LoRA, connection, tokenizer, model card

`status` in run.json is `running` until the model is written.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.trainer_utils import IntervalStrategy

from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model.loading import MODEL_FOLDER
from cctuning.training.checks import check_checkpoint
from cctuning.training.config import CCConfig
from cctuning.training.directory import (
    PARTIAL_MODEL,
    TOTAL_RUNTIME,
    changes,
    claim,
    full_disk,
    library_log,
    resolved,
    write_record,
)
from cctuning.training.options import RunOptions
from cctuning.training.prepare import prepare
from cctuning.training.summary import (
    doubts,
    log_often_enough,
    plan,
    trial,
    without_effect,
)
from cctuning.training.trainer import CCTrainer


def train(options: RunOptions, connection: ConnectionConfig, args: CCConfig) -> CCTrainer:
    """Train and write the run directory `args.output_dir`.

    Options, rows and model are checked before anything is written.
    """
    if not options.model:
        raise UserError("model: missing; name the base model in the recipe or with --model.")
    if not options.data and not options.parallel:
        raise UserError(
            "data / parallel: missing; name the training rows (--data), parallel text without answers (--parallel), "
            "or both, in the recipe or as flags."
        )
    if connection.connection == "none" and not options.data:
        raise UserError("data: missing; connection: none trains on answered rows alone. Name them with --data.")
    if args.eval_strategy != "no" and not options.eval_data:
        raise UserError(
            f"eval_strategy: {IntervalStrategy(args.eval_strategy).value} needs eval_data; name rows, or leave it out."
        )
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise UserError(f"{name}: expected at least 1, got {getattr(args, name)}.")
    directory, checkpoint, said = claim(args)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    new = not directory.exists()
    try:
        trainer, record = prepare(options, connection, args, directory)
        todo, lines = plan(trainer, record["exports"])
        notes = record["notes"]
        notes += [*filter(None, [log_often_enough(todo, args)]), *doubts(todo, args)]
        main = trainer.is_world_process_zero()
        if main:
            if trainer.recording is not None and trainer.records and not options.dry_run:
                lines.append(f"recording:  {trainer.recording.size()}, once before the first step")
            print("\n".join(lines), flush=True)
        if options.dry_run:
            dry(trainer, notes)
            return trainer
        trainer.make_recording()
    finally:
        with suppress(OSError):  # not empty, or removed by another process
            if new:
                directory.rmdir()  # made by the trainer
    record["plan"] = asdict(todo)
    given, connection = connection, trainer.connected.config  # with defaults that depend on the run
    trainer.accelerator.wait_for_everyone()  # until every process has claimed the directory
    notes += [*said, *changes(directory, options, connection, args, record)] if checkpoint else said
    notes += without_effect(options, given, args)
    record["checkpoint"] = checkpoint
    directory.mkdir(parents=True, exist_ok=True)
    if main:
        write_record(directory, record)
        write_atomically(directory / "config.yaml", resolved(options, connection, args))
        for note in notes:
            print(f"note: {note}", flush=True)
    try:
        with library_log(directory / "train.log" if main else None), full_disk(directory):
            run_steps(trainer, checkpoint)
            finish(trainer, directory)
    except UserError as error:
        if main:
            with suppress(OSError):  # if the disk is full
                write_record(directory, record | {"status": "stopped", "error": str(error)})
        raise
    record |= {
        "status": "finished",
        "steps": trainer.state.global_step,
        "seconds": round(trainer.state.log_history[-1][TOTAL_RUNTIME], 1),
    }
    if trainer.by_language is not None and (moved := trainer.by_language.as_dict()):
        record["alignment"] = moved
    if trainer.fit is not None:
        record["transform_fit"] = {key: value for key, value in asdict(trainer.fit).items() if key != "matrix"}
    if main:
        write_record(directory, record)
    return trainer


def dry(trainer: CCTrainer, notes: list[str]) -> None:
    """Print time and memory of the run, measured on a batch."""
    if trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled:
        print("\n".join(trial(trainer)))
    if trainer.is_world_process_zero():
        print("".join(f"note: {note}\n" for note in notes) + "dry_run: nothing was trained or written.", flush=True)


def run_steps(trainer: CCTrainer, checkpoint: str | None) -> None:
    """Train; errors that only the first step can show become a `UserError`."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory on the accelerator: lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps) or max_length, or use tune: lora."
        ) from error
    except ImportError as error:  # an optimizer whose package is not installed
        raise UserError(f"options: {error}") from error


def finish(trainer: CCTrainer, directory: Path) -> None:
    """Write RUN/model, whole or not at all."""
    partial = directory / PARTIAL_MODEL
    if trainer.is_world_process_zero() and partial.exists():
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml has the same
        trainer.create_model_card(model_name=directory.name)
        os.replace(directory / "README.md", partial / "README.md")
        shutil.rmtree(
            directory / MODEL_FOLDER, ignore_errors=True
        )  # the run was interrupted before its status changed
        os.replace(partial, directory / MODEL_FOLDER)
