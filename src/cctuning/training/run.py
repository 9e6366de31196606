"""A training run: from resolved options to a run directory that says all that is needed to repeat it.

    RUN/config.yaml      every option that differs from its default, resolved; `cctuning train --config` runs it again
    RUN/run.json         status, versions, seed, data fingerprints, counts, rows left out
    RUN/metrics.jsonl    one line a log step
    RUN/train.log        what the libraries said
    RUN/checkpoint-N/    to resume from
    RUN/model/           the result: weights or LoRA, connection, tokenizer, model card

The directory is claimed when training starts and `status` is `running` until the model is written whole.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import time
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from cctuning.connection import ConnectionConfig
from cctuning.data import LoadReport, Source, load_rows
from cctuning.errors import UserError
from cctuning.model.adapter import write_atomically
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE, load_base, load_tokenizer
from cctuning.training.config import CCConfig
from cctuning.training.options import RunOptions
from cctuning.training.trainer import CCTrainer

PACKAGES = ("cc-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def train(options: RunOptions, connection: ConnectionConfig, args: CCConfig) -> CCTrainer:
    """Train as the options say and write the run directory `args.output_dir`.

    Raises:
        UserError: bad options or rows, a directory that holds another run, a loss that is not finite.
    """
    if not options.model:
        raise UserError("model: missing; name the base model in the recipe or with --model.")
    if not options.data:
        raise UserError("data: missing; name the training rows in the recipe or with --data.")
    directory, checkpoint = claim(args)
    rows, report = read(options.data, args, connection)
    eval_rows, eval_report = read(options.eval_data, args, connection) if options.eval_data else (None, None)
    tokenizer = load_tokenizer(
        options.tokenizer or options.model, revision=options.revision, trust_remote_code=args.trust_remote_code
    )
    model = load_base(
        options.model,
        dtype=options.dtype,
        revision=options.revision,
        trust_remote_code=args.trust_remote_code,
        attn_implementation=options.attn_implementation,
    )
    if options.tune == "connection":
        model.requires_grad_(False)
    record = {
        "status": "running",
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": sys.version.split()[0], "platform": platform.platform()},
        "seed": args.seed,
        "model": options.model,
        "reference_language": args.reference_language,
        "data": report.as_dict(),
        "eval_data": eval_report.as_dict() if eval_report else None,
        "checkpoint": checkpoint,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory, record)
    write_atomically(directory / "config.yaml", resolved(options, connection, args))
    with_log(directory / "train.log")
    trainer = CCTrainer(
        model=model,
        args=args,
        connection_config=connection,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=lora(options),
        callbacks=[MetricsFile(directory / "metrics.jsonl")],
    )
    record["skipped_in_tokenisation"] = [f"{origin}: {reason}" for origin, reason in trainer.skipped]
    record["chat"] = trainer.chat
    write_record(directory, record)
    started = time.time()
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, directory)
    record |= {"status": "finished", "steps": trainer.state.global_step, "seconds": round(time.time() - started, 1)}
    if trainer.fit is not None:
        record["transform_fit"] = {key: value for key, value in asdict(trainer.fit).items() if key != "matrix"}
    write_record(directory, record)
    return trainer


def claim(args: CCConfig) -> tuple[Path, str | None]:
    """The run directory, checked, and the checkpoint to resume from (None: start anew).

    Raises:
        UserError: the directory holds a finished run, or one that was cut off and is not to be resumed.
    """
    directory = Path(args.output_dir)
    resume = args.resume_from_checkpoint
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output_dir: {directory} is a file; name a directory.")
    record = directory / RUN_FILE
    if not record.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise UserError(f"output_dir: {directory} is not empty and holds no run; name another, or empty it.")
        if resume:
            raise UserError(f"resume_from_checkpoint: {directory} holds no run to resume; leave the option out.")
        return directory, None
    status = json.loads(record.read_text(encoding="utf-8")).get("status")
    if status == "finished":
        raise UserError(f"output_dir: {directory} holds a finished run; name another, or remove it yourself.")
    if not resume or str(resume).lower() == "false":
        raise UserError(
            f"output_dir: {directory} holds a run that was cut off; add --resume_from_checkpoint true to continue it, "
            "or name another directory."
        )
    if str(resume).lower() != "true":
        if not Path(resume).is_dir():
            raise UserError(
                f"resume_from_checkpoint: {resume}: no such directory; give true, or a checkpoint-… folder."
            )
        return directory, str(resume)
    return directory, get_last_checkpoint(str(directory))  # None where it was cut off before the first checkpoint


def read(data: list[Any], args: CCConfig, connection: ConnectionConfig) -> tuple[Dataset, LoadReport]:
    """The rows that `data` names (paths or mappings of `Source`'s fields)."""
    sources = [Source.from_dict({"path": entry} if isinstance(entry, str) else entry) for entry in data]
    if args.bad_rows == "skip":
        for source in sources:
            source.bad_rows = "skip"
    return load_rows(
        sources,
        reference_language=args.reference_language,
        seed=args.seed,
        require_reference=connection.connection != "none",
    )


def lora(options: RunOptions) -> LoraConfig | None:
    """PEFT's config where `tune` is `lora`."""
    if options.tune != "lora":
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules or "all-linear",
    )


def resolved(*parts: Any) -> str:
    """The options as YAML: those that differ from their defaults, in the order they are declared."""
    options: dict[str, Any] = {}
    for part in parts:
        for option in fields(part):
            value = getattr(part, option.name)
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            plain = (
                value.value if hasattr(value, "value") and not isinstance(value, (str, bool, int, float)) else value
            )
            if option.init and value != default and _writable(plain):
                options[option.name] = plain
    options.pop("resume_from_checkpoint", None)
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def _writable(value: Any) -> bool:
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        return False
    return True


def write_record(directory: Path, record: dict[str, Any]) -> None:
    write_atomically(directory / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def finish(trainer: CCTrainer, directory: Path) -> None:
    """Write RUN/model whole or not at all."""
    partial = directory / f".{MODEL_FOLDER}.partial"
    if trainer.is_world_process_zero() and partial.exists():
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
        trainer.create_model_card(model_name=directory.name)
        os.replace(directory / "README.md", partial / "README.md")
        os.replace(partial, directory / MODEL_FOLDER)


def with_log(path: Path) -> None:
    """Copy what transformers, TRL, PEFT and we log to `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    transformers.utils.logging.add_handler(handler)
    for name in ("trl", "peft", "accelerate", "datasets", "cctuning"):
        logging.getLogger(name).addHandler(handler)


class MetricsFile(TrainerCallback):
    """One JSON line a log step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
