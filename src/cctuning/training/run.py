"""Run a training: from options to a run directory with all that is needed to repeat it.

    RUN/config.yaml      every option that differs from its default; `cctuning train --config` runs it again
    RUN/run.json         status, versions, seed, data fingerprints, counts, rows left out
    RUN/metrics.jsonl    one line per log step
    RUN/samples.jsonl    answers to a few evaluation prompts at each evaluation
    RUN/train.log        the libraries' log
    RUN/checkpoint-N/    checkpoints
    RUN/model/           the result: weights or LoRA, connection, tokenizer, model card

`status` in run.json is `running` until the model is written.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.integrations import is_fsdp_enabled
from transformers.trainer_utils import IntervalStrategy

from cctuning.connection import ConnectionConfig
from cctuning.data import LoadReport, Source, load_rows
from cctuning.data.parallel.pairs import load_parallel
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model.exportable import obstacles
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE, load_base, load_tokenizer
from cctuning.model.packing import check_connection
from cctuning.model.sites import innermost, unwrap
from cctuning.training.callbacks import SAMPLES_FILE, SampleAnswers
from cctuning.training.config import CCConfig
from cctuning.training.directory import (
    METRICS_FILE,
    PARTIAL_MODEL,
    MetricsFile,
    RunLog,
    changes,
    claim,
    failed_write,
    full_disk,
    keep_metrics,
    resolved,
    trained_before,
    write_record,
)
from cctuning.training.launch import check_checkpoint
from cctuning.training.options import RunOptions
from cctuning.training.sharded_loading import NotShardable, ShardedLoader
from cctuning.training.summary import (
    Plan,
    doubts,
    expected,
    log_often_enough,
    plan,
    trial,
    unforeseen,
    without_effect,
)
from cctuning.training.trainer import CCTrainer

logger = logging.getLogger(__name__)
PACKAGES = ("cc-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def train(options: RunOptions, connection: ConnectionConfig, args: CCConfig) -> CCTrainer:
    """Train and write the run directory `args.output_dir`.

    Options, rows and model are checked before anything is written.

    Raises:
        UserError: bad options or rows, a directory with another run, a loss that is not finite.
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
    if args.packing or args.padding_free:
        check_connection(connection)
    directory, checkpoint, said = claim(args)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    new = not directory.exists()
    with RunLog(logger) as log:
        try:
            trainer, record, start = prepare(options, connection, args, directory)
            todo = plan(trainer)
            log.notes += [*filter(None, [log_often_enough(todo, args)]), *doubts(todo, args)]
            if trainer.is_world_process_zero():
                print("\n".join(todo.lines(record["exports"])), flush=True)
            if options.dry_run:
                dry(trainer, todo, log.notes)
                return trainer
            trainer.make_recording()
        finally:
            with suppress(OSError):  # not empty, or removed by another process
                if new:
                    directory.rmdir()  # made by the trainer
        record["plan"] = todo.as_dict()
        given, connection = connection, trainer.connected.config  # with defaults that depend on the run
        trainer.accelerator.wait_for_everyone()  # until every process has claimed the directory
        log.notes += [*said, *changes(directory, options, connection, args, record)] if checkpoint else said
        log.notes += without_effect(options, given, args)
        record |= {"checkpoint": checkpoint, "notes": log.notes}
        directory.mkdir(parents=True, exist_ok=True)
        before = 0.0
        if trainer.is_world_process_zero():
            log.write_to(directory / "train.log")
            keep_metrics(directory / METRICS_FILE, checkpoint)
            before = trained_before(directory / METRICS_FILE)
            write_record(directory, record)
            write_atomically(directory / "config.yaml", resolved(options, connection, args))
            for note in log.notes:
                print(f"note: {note}", flush=True)
        started = time.time() - before
        try:
            with full_disk(directory):
                run_steps(trainer, checkpoint, start)
                finish(trainer, directory)
        except UserError as error:
            if trainer.is_world_process_zero():
                with suppress(OSError):  # if the disk is full
                    write_record(directory, record | {"status": "stopped", "error": str(error)})
            raise
        record |= {
            "status": "finished",
            "steps": trainer.state.global_step,
            "seconds": round(time.time() - started, 1),
        }
        if trainer.by_language is not None and (moved := trainer.by_language.as_dict()):
            record["alignment"] = moved
        if trainer.fit is not None:
            record["transform_fit"] = {key: value for key, value in asdict(trainer.fit).items() if key != "matrix"}
        if trainer.is_world_process_zero():
            write_record(directory, record)
    return trainer


def dry(trainer: CCTrainer, todo: Plan, notes: list[str]) -> None:
    """Print time and memory of the run, measured on a batch."""
    if trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled:
        print("\n".join(expected(todo, *trial(trainer))))
    if trainer.is_world_process_zero():
        print("".join(f"note: {note}\n" for note in notes) + "dry_run: nothing was trained or written.", flush=True)


def run_steps(trainer: CCTrainer, checkpoint: str | None, start: ShardedLoader | None) -> None:
    """Train; errors that only the first step can show become a `UserError`."""
    try:
        with start.reading(trainer.model, trainer.accelerator) if start else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory on the accelerator: lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps) or max_length, or use tune: lora."
        ) from error
    except ImportError as error:  # an optimizer whose package is not installed
        raise UserError(f"options: {error}") from error


def prepare(
    options: RunOptions, connection: ConnectionConfig, args: CCConfig, directory: Path
) -> tuple[CCTrainer, dict[str, Any], ShardedLoader | None]:
    """The trainer, the record for run.json, and the loader of the weights if they are loaded sharded."""
    if args.not_here:
        logger.warning(f"{', '.join(args.not_here)}: off, because there is no accelerator.")
    paired = connection.connection != "none" and not options.parallel
    rows, report = read(options.data, args, paired) if options.data else (None, None)
    eval_rows, eval_report = read(options.eval_data, args, False) if options.eval_data else (None, None)
    pairs, pairs_report = None, None
    if options.parallel and connection.connection != "none":
        pairs, pairs_report = load_parallel(
            options.parallel, reference_language=args.reference_language, seed=args.seed, bad_rows=args.bad_rows
        )
        pairs_report.notes += shared_with(eval_rows, pairs)
    reports = [found for found in (report, eval_report, pairs_report) if found is not None]
    for note in [note for found in reports for note in found.notes]:
        logger.warning(note)
    tokenizer = load_tokenizer(
        options.tokenizer or options.model, revision=options.revision, trust_remote_code=args.trust_remote_code
    )
    model, start = load_model(options, args)
    if options.tune == "connection":
        model.requires_grad_(False)
    try:
        trainer = CCTrainer(
            model=model,
            args=args,
            connection_config=connection,
            train_dataset=rows,
            parallel_dataset=pairs,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            peft_config=options.lora() if options.tune == "lora" else None,
            callbacks=[MetricsFile(directory / METRICS_FILE)],
        )
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # TRL's, PEFT's and report_to's
        if (full := failed_write(error)) is not None:
            raise UserError(
                f"the tokenised rows cannot be written to the cache ({full}): free some space, or set "
                "HF_DATASETS_CACHE and TMPDIR to other places."
            ) from error
        raise UserError(f"options: {error}") from error
    for note in trainer.notes:
        logger.warning(note)
    check_sizes(trainer)
    whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)  # one process cannot generate from a shard
    if eval_rows is not None and args.eval_samples and whole and connection.connection != "adaptive":
        trainer.add_callback(SampleAnswers(trainer, directory / SAMPLES_FILE, args.eval_samples))
    can = obstacles(trainer.connected)
    for note in unforeseen(can, options.tune):
        logger.warning(note)
    settled = trainer.connected.config
    moved = connection.reference_weights is None and settled.reference_weights == "current"
    if moved and settled.connection in ("align", "gated"):
        logger.warning("reference_weights: current, because the start is not kept under DeepSpeed or with a gradient")
    left_out = sum(len(found.skipped) for found in reports) + len(trainer.skipped)
    if left_out:
        logger.warning(f"rows left out (bad_rows: skip): {left_out}; {RUN_FILE} lists them.")
    record = {
        "status": "running",
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": sys.version.split()[0], "platform": platform.platform()},
        "seed": args.seed,
        "model": options.model,
        "reference_language": args.reference_language,
        "data": (report or LoadReport(args.reference_language)).as_dict(),
        "parallel": pairs_report.as_dict() if pairs_report else None,
        "eval_data": eval_report.as_dict() if eval_report else None,
        "skipped_in_tokenisation": [f"{origin}: {reason}" for origin, reason in trainer.skipped],
        "chat": trainer.chat,
        "chat_template_kwargs": args.chat_template_kwargs,
        "thinking": trainer.settled is not None and trainer.settled.thinks,
        "exports": can,
    }
    return trainer, record, start


def load_model(options: RunOptions, args: CCConfig) -> tuple[PreTrainedModel, ShardedLoader | None]:
    """The base model; under FSDP with `fsdp_cpu_ram_efficient_loading` without its weights, if possible."""
    loading: dict[str, Any] = {
        "dtype": options.dtype,
        "revision": options.revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": options.attn_implementation,
    }
    quantisation = options.quantisation(options.dtype)
    if quantisation is not None:
        return load_base(options.model, **loading, quantisation=quantisation), None
    if is_fsdp_enabled():
        start, reason = None, None
        try:
            start = ShardedLoader(options.model, **loading)
        except NotShardable as found:
            reason = str(found)
        reasons: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(reasons, reason)  # all processes load in the same way
        if start and not any(reasons):
            return start.model, start
        why = next(filter(None, reasons))
        logger.warning(f"every process reads the whole model {options.model!r} before it is sharded: {why}.")
    return load_base(options.model, **loading), None


def check_sizes(trainer: CCTrainer) -> None:
    """Raise `UserError` if a row has a token beyond the vocabulary, or more tokens than the model has positions."""
    model = unwrap(trainer.model)
    embedding: Any = innermost(model.get_input_embeddings())  # inside a LoRA or trainable tokens
    embedding = getattr(embedding, "original_module", embedding)
    vocabulary = embedding.num_embeddings  # its weight has shape 0 under ZeRO-3
    rows: Any = trainer.train_dataset
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for column in ("input_ids", "reference_input_ids"):
        ids = rows.data.column(column)
        largest, longest = pc.max(pc.list_flatten(ids)).as_py(), pc.max(pc.list_value_length(ids)).as_py()
        if largest is not None and largest >= vocabulary:
            raise UserError(
                f"tokenizer: token {largest} is outside the model's vocabulary of {vocabulary}; use the model's own."
            )
        if positions is not None and longest > positions:
            option = "max_length" if column == "input_ids" else "max_reference_length"
            raise UserError(
                f"{option}: a row has {longest} tokens, and the model has {positions} positions; set {option} to at "
                f"most {positions}" + ("." if column == "input_ids" else " and shorten or skip such rows.")
            )


def read(data: list[Any], args: CCConfig, require_reference: bool) -> tuple[Dataset, LoadReport]:
    """Load the rows of `data` (paths, or mappings of `Source`'s fields)."""
    sources = [Source.from_dict(entry, "data") for entry in data]
    if args.bad_rows == "skip":
        for source in sources:
            source.bad_rows = "skip"
    return load_rows(
        sources,
        reference_language=args.reference_language,
        seed=args.seed,
        require_reference=require_reference,
    )


def shared_with(eval_rows: Dataset | None, pairs: Dataset) -> list[str]:
    """A note if parallel text contains prompts of the evaluation rows."""
    if eval_rows is None:
        return []
    asked = {prompt for prompt in eval_rows["prompt"] if isinstance(prompt, str)}
    found = sum(
        text in asked or reference in asked for text, reference in zip(pairs["text"], pairs["reference"], strict=True)
    )
    return [f"{found} pairs of the parallel text are prompts of eval_data; remove them from one."] if found else []


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
