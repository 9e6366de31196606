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

import math
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import upload_folder
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations import is_fsdp_enabled
from transformers.trainer_utils import IntervalStrategy

from cctuning.connection import ConnectionConfig
from cctuning.data import LoadReport, load_parallel, load_rows
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.hardware import multiplies_in_bf16
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE, load_base, load_tokenizer
from cctuning.model.lora import obstacles
from cctuning.model.serialization import CONFIG_FILE, LORA_CONFIG, first_line
from cctuning.model.sites import is_quantised
from cctuning.training.callbacks import SAMPLES_FILE, SampleAnswers
from cctuning.training.config import CCConfig
from cctuning.training.directory import (
    METRICS_FILE,
    PARTIAL_MODEL,
    TOTAL_RUNTIME,
    MetricsFile,
    changes,
    claim,
    failed_write,
    full_disk,
    library_log,
    resolved,
    write_record,
)
from cctuning.training.options import RunOptions
from cctuning.training.saving import weights
from cctuning.training.summary import doubts, log_often_enough, plan, trial, unforeseen, without_effect
from cctuning.training.trainer import CCTrainer

PACKAGES = ("cc-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


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
    args.push_to_hub &= not options.dry_run  # the trainer would create the repository
    if args.eval_strategy != "no" and not options.eval_data:
        raise UserError(
            f"eval_strategy: {IntervalStrategy(args.eval_strategy).value} needs eval_data; name rows, or leave it out."
        )
    directory, checkpoint, said = claim(args)
    new = not directory.exists()
    try:
        trainer, record = prepare(options, connection, args, directory)
        todo, lines = plan(trainer, record["exports"])
        notes = record["notes"]
        notes += [*filter(None, [log_often_enough(todo, args)]), *doubts(todo, args)]
        main = trainer.is_world_process_zero()
        if main:
            if trainer.recording is not None and trainer.recording.whole and not options.dry_run:
                lines.append(f"recording:  {trainer.recording.size()}, once before the first step")
            print("\n".join(lines), flush=True)
        if options.dry_run:
            if trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled:
                print("\n".join(trial(trainer)))
            if main:
                print(
                    "".join(f"note: {note}\n" for note in notes) + "dry_run: nothing was trained or written.",
                    flush=True,
                )
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
        trainer.args.push_to_hub = False  # the trainer uploads all of the run directory; config.yaml keeps the option
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
    if trainer.hub_model_id is not None:
        upload(trainer, directory / MODEL_FOLDER)
    return trainer


def prepare(
    options: RunOptions, connection: ConnectionConfig, args: CCConfig, directory: Path
) -> tuple[CCTrainer, dict[str, Any]]:
    """The trainer, and the record for run.json."""
    notes = [f"{', '.join(args.not_here)}: off, because there is no accelerator."] if args.not_here else []
    if "bf16" in args.not_here and multiplies_in_bf16():
        notes.append("bf16: this CPU is faster with it; add use_cpu: true to keep it.")
    reading: Any = {"reference_language": args.reference_language, "seed": args.seed, "bad_rows": args.bad_rows}
    connects = connection.connection != "none"
    rows = eval_rows = pairs = report = eval_report = pairs_report = None
    if options.data:
        rows, report = load_rows(options.data, require_reference=connects and not options.parallel, **reading)
    if options.eval_data:
        eval_rows, eval_report = load_rows(options.eval_data, require_reference=False, **reading)
    if options.parallel and connects:
        pairs, pairs_report = load_parallel(options.parallel, **reading)
    reports = [found for found in (report, eval_report, pairs_report) if found is not None]
    notes += [note for found in reports for note in found.notes]
    tokenizer = load_tokenizer(
        options.tokenizer or options.model, revision=options.revision, trust_remote_code=args.trust_remote_code
    )
    model = load_model(options, args)
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
            peft_config=options.lora(model, options.revision) if options.tune == "lora" else None,
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
    notes += trainer.notes
    trainer.notes = []  # printed after the summary
    whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)  # one process cannot generate from a shard
    if eval_rows is not None and args.eval_samples and whole and connection.connection != "adaptive":
        trainer.add_callback(SampleAnswers(trainer, directory / SAMPLES_FILE, args.eval_samples))
    can = obstacles(trainer.connected)
    notes += unforeseen(can, options.tune)
    settled = trainer.connected.config
    moved = connection.reference_weights is None and settled.reference_weights == "current"
    if moved and settled.connection in ("align", "gated"):
        notes.append("reference_weights: current, because the references are not recorded")
    left_out = sum(source.skipped for found in reports for source in found.sources) + len(trainer.skipped)
    if left_out:
        notes.append(f"rows left out (bad_rows: skip): {left_out}; {RUN_FILE} lists them.")
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
        "notes": notes,
    }
    return trainer, record


def load_model(options: RunOptions, args: CCConfig) -> PreTrainedModel:
    """The base model; without its weights in processes that get their shards of them from the first one."""
    beside = {CONFIG_FILE: "a connection beside its weights", LORA_CONFIG: "a LoRA and not the weights of a model"}
    for file, what in beside.items():
        if (Path(options.model).expanduser() / file).is_file():
            raise UserError(
                f"model: {options.model} has {what}, so training would start without it: merge it first (cctuning "
                "export RUN --format merged --output DIR) and name DIR, or name its base."
            )
    loading: dict[str, Any] = {
        "dtype": options.dtype,
        "revision": options.revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": options.attn_implementation,
        "quantisation": options.quantisation(options.dtype),
    }
    if not is_fsdp_enabled() or loading["quantisation"] is not None:
        return load_base(options.model, **loading)
    model = load_base(options.model, **loading) if torch.distributed.get_rank() == 0 else None
    config = [None if model is None or is_quantised(model) or model.is_remote_code() else model.config]
    torch.distributed.broadcast_object_list(config)
    if model is not None:
        return model
    if config[0] is None:
        return load_base(options.model, **loading)
    return without_weights(options.model, config[0])


def without_weights(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """A model with buffers but without weights, for `fsdp_cpu_ram_efficient_loading`: accelerate distributes those of
    the first process when it shards the model.

    transformers 5.23 loads the weights in every process. A weight here is one NaN, expanded to its shape: with meta
    tensors accelerate could not map the optimizer to the sharded parameters, and PEFT would put a LoRA on meta too.
    """
    options = {"dtype": config.dtype, "attn_implementation": config._attn_implementation}
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config, **options)
    state = {
        key: torch.full((), math.nan if like.is_floating_point() else 0, dtype=like.dtype).expand(like.shape)
        for key, like in weights(skeleton)
    }
    model: PreTrainedModel = type(skeleton).from_pretrained(None, config=config, state_dict=state, **options)
    model.name_or_path = model.config.name_or_path = name
    return model


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
        # There is one if the run was interrupted before its status changed.
        shutil.rmtree(directory / MODEL_FOLDER, ignore_errors=True)
        os.replace(partial, directory / MODEL_FOLDER)


def upload(trainer: CCTrainer, folder: Path) -> None:
    """Upload RUN/model, and nothing else of the run: its other files name rows and paths."""
    args, repo = trainer.args, str(trainer.hub_model_id)  # known to the first process alone
    options: dict[str, Any] = {"token": args.hub_token, "revision": args.hub_revision}
    try:
        upload_folder(repo_id=repo, folder_path=folder, commit_message="End of training", **options)
    except Exception as error:  # the hub's client and its HTTP library have their own classes
        raise UserError(
            f"push_to_hub: {folder} is complete but was not uploaded ({first_line(error)}); run "
            f"hf upload {repo} {folder}."
        ) from error
