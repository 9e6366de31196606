"""The files of a run directory: claim and resume it, find its checkpoints, write its options, record and log."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning import __version__
from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.model import serialization
from cctuning.model.loading import MODEL_FOLDER, RUN_FILE, read_record
from cctuning.training.config import CCConfig
from cctuning.training.options import RunOptions

METRICS_FILE = "metrics.jsonl"
INDEX = ".safetensors.index.json"
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "cctuning")
PARTIAL_MODEL = f".{MODEL_FOLDER}.partial"  # the model while it is being written
FAILED_WRITES = ("I/O error", "inline_container", "PytorchStreamWriter")  # in messages of safetensors and torch.save
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
TOTAL_RUNTIME = "total_runtime"  # in METRICS_FILE: seconds trained so far, also before the run was resumed
# Options that decide which weights a checkpoint contains.
SHAPING = {"model", "tune", "lora_rank", "lora_target_modules", "layers", "optim"}
SHAPING |= {"lora_target_parameters", "lora_modules_to_save", "use_dora", "load_in_4bit", "load_in_8bit"}
SHAPING |= {"connection", "decision", "decision_rank", "transform", "transform_rank"}


def claim(args: CCConfig) -> tuple[Path, str | None, list[str]]:
    """The run directory, the checkpoint to resume from (None: from the beginning), and notes on other checkpoints."""
    directory = Path(str(args.output_dir))
    resume = args.resume_from_checkpoint
    resume = None if resume is None or str(resume).lower() == "false" else str(resume)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output_dir: {directory} is a file; name a directory.")
    if not (directory / RUN_FILE).is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise UserError(f"output_dir: {directory} is not empty and contains no run; name another, or empty it.")
        if resume:
            raise UserError(f"resume_from_checkpoint: {directory} contains no run to resume; leave the option out.")
        return directory, None, []
    if read_record(directory).get("status") == "finished":
        raise UserError(f"output_dir: {directory} contains a finished run; name another, or remove it.")
    if not resume:
        advice = "add --resume_from_checkpoint true to continue it, or name another directory"
        if not any(directory.glob("checkpoint-*")):
            advice = "it has no checkpoint to continue from: remove it, or name another directory"
        raise UserError(f"output_dir: {directory} contains an interrupted run; {advice}.")
    if resume.lower() == "true":
        checkpoint, notes = last_whole(directory, args.save_only_model)  # none before the first checkpoint
        return directory, checkpoint, notes + (check_checkpoint(checkpoint) if checkpoint else [])
    if not Path(resume).is_dir():
        raise UserError(f"resume_from_checkpoint: {resume}: no such directory; give true, or a checkpoint-* folder.")
    wrong = fault(Path(resume), args.save_only_model)
    if wrong:
        raise UserError(
            f"resume_from_checkpoint: {resume}: incomplete: {wrong} is missing or damaged; give true for the newest "
            "complete checkpoint, or name another."
        )
    return directory, resume, check_checkpoint(resume)


def check_checkpoint(checkpoint: str) -> list[str]:
    """A note if a checkpoint has no optimizer state; `UserError` if it and the run are not of the same engine."""
    written = (Path(checkpoint) / "latest").is_file()  # names the folder of DeepSpeed's files
    running = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if written != running:
        why = (
            "written by DeepSpeed; resume with"
            if written
            else "DeepSpeed reads its own checkpoints only; resume without"
        )
        raise UserError(f"resume_from_checkpoint: {checkpoint}: {why} its configuration.")
    if written or (Path(checkpoint) / OPTIMIZER_NAME).exists():
        return []
    what = "the optimizer's state and the learning rate schedule start anew"
    return [f"{Path(checkpoint).name} was saved without its optimizer (save_only_model): {what}."]


def changes(
    directory: Path, options: RunOptions, connection: ConnectionConfig, args: CCConfig, record: dict[str, Any]
) -> Iterator[str]:
    """Notes on options and rows that differ from those the run was started with."""
    config = directory / "config.yaml"
    before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    now = yaml.safe_load(resolved(options, connection, args))
    if isinstance(before, dict) and before != now:
        names = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        shaping = [name for name in names if name in SHAPING]
        if shaping:
            raise UserError(
                f"resume_from_checkpoint: {config} has another {', '.join(shaping)}, and its checkpoints do not fit; "
                "resume with the options of the original run, or name another output_dir."
            )
        yield f"resumed with options that differ from the original run's: {', '.join(names)}."
    old = read_record(directory)
    for part, name in (("data", "rows"), ("parallel", "parallel text")):
        if _sources(record.get(part)) != _sources(old.get(part)):
            yield f"resumed on {name} that differ from the original run's."


def _sources(report: dict[str, Any] | None) -> list[tuple[str, Any]]:
    return [(source["path"], source["fingerprints"]) for source in (report or {}).get("sources", [])]


def resolved(*parts: Any) -> str:
    """The options that differ from their defaults as YAML, in order of declaration.

    `connection` is always included, as its default has changed once.
    """
    options: dict[str, Any] = {}
    for part in parts:
        for option in fields(part):
            value = getattr(part, option.name)
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            plain = value.value if isinstance(value, Enum) else value
            if option.init and (value != default or option.name == "connection") and _writable(plain):
                options[option.name] = plain
    options.pop("resume_from_checkpoint", None)
    if "activation_checkpointing" in options:
        options.pop("gradient_checkpointing", None)  # its old name, which transformers also sets, and warns about
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def _writable(value: Any) -> bool:
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        return False
    return True


def check_record(file: Path, record: dict[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise `UserError` if run.json lacks what a reader needs, as that of another version may.

    Args:
        file: run.json.
        expected: dotted key -> its type.
        what: what the reader does, as in `report it`.
    """
    versions = record.get("versions")
    by = versions.get("cc-tuning", "unknown") if isinstance(versions, dict) else "unknown"
    for key, kind in expected.items():
        value: Any = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(
                f"{file}: {key} is missing or has another type: written by cc-tuning {by}, this is "
                f"{__version__}; {what} with that version, or train again."
            )


def read_options(directory: Path) -> dict[str, Any]:
    """The options in a run's config.yaml, which are those that differ from their defaults."""
    file = directory / "config.yaml"
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error}): the run directory is damaged; copy it again.") from error
    if not isinstance(options, dict):
        raise UserError(f"{file}: expected a mapping of options: the run directory is damaged; copy it again.")
    return options


def write_record(directory: Path, record: dict[str, Any]) -> None:
    write_atomically(directory / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Turn a failed write within into a `UserError`, and remove the model or checkpoint that it left incomplete."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if failed_write(error) is None:
            raise
        for part in [directory / PARTIAL_MODEL, *directory.glob("checkpoint-*")]:
            if not is_complete(part):
                shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"output_dir: {directory} cannot be written to ({error}): free some space, then continue the run with "
            "--resume_from_checkpoint true."
        ) from error


def failed_write(error: BaseException | None) -> BaseException | None:
    """The error of a full or failing disk that `error` is, or was raised after; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            return error
        if isinstance(error, (SafetensorError, RuntimeError)) and any(name in str(error) for name in FAILED_WRITES):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def library_log(path: Path | None) -> Iterator[None]:
    """Write what this package and its libraries log within to `path`, and warnings to stderr too; None: nowhere."""
    file = logging.FileHandler(path, encoding="utf-8") if path else logging.NullHandler()
    file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk stops the run by itself
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler() if path else logging.NullHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("warning: %(message)s"))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    handlers: list[tuple[logging.Logger, logging.Handler]] = [(logger, file) for logger in loggers]
    # Python shows warnings of loggers that nothing handles; with the file they are handled. transformers has its own.
    handlers += [(logger, shown) for logger in loggers if not logger.hasHandlers()]
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in handlers:
            logger.removeHandler(handler)
        file.close()


class MetricsFile(TrainerCallback):
    """Writes the trainer's log as JSON lines, with the seconds trained so far, also before the run was resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the log of the checkpoint that is resumed; what was logged after it is run again."""
        self.began = time.time() - max((line.get(TOTAL_RUNTIME, 0.0) for line in state.log_history), default=0.0)
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        line = state.log_history[-1]
        line[TOTAL_RUNTIME] = round(time.time() - self.began, 3)
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


# -- checkpoints -----------------------------------------------------------------------------------------------------


def is_complete(checkpoint: Path) -> bool:
    """Whether the trainer's state is there, which transformers writes last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def fault(checkpoint: Path, weights_only: bool = False) -> str | None:
    """The first file that is missing or damaged; None if the checkpoint can be resumed from.

    Args:
        weights_only: it was saved without the optimizer (`save_only_model`).
    """
    if not is_complete(checkpoint):
        return TRAINER_STATE_NAME
    files = sorted(checkpoint.iterdir())
    damaged = next((file.name for file in files if not _is_readable(file)), None)
    if damaged or (checkpoint / "latest").exists():  # a DeepSpeed checkpoint, which has its own layout
        return damaged
    # File -> beginnings of names, one of which is enough.
    needed: dict[str, tuple[str, ...]] = {"model.safetensors": ("model", "adapter_model")}
    if (checkpoint / serialization.CONFIG_FILE).exists():
        needed[serialization.WEIGHTS_FILE] = (serialization.WEIGHTS_STEM,)
    if not weights_only:
        needed |= {OPTIMIZER_NAME: (OPTIMIZER_NAME,), SCHEDULER_NAME: (SCHEDULER_NAME,)}
        needed |= {"rng_state.pth": ("rng_state",)}
    missing = (name for name, begin in needed.items() if not any(file.name.startswith(begin) for file in files))
    return next(missing, None)


def _is_readable(file: Path) -> bool:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return True
        if file.name.endswith(INDEX):
            serialization.read_weights(file.parent, file.name.removesuffix(INDEX))
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        return file.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(file)
    except (OSError, ValueError, SafetensorError, UserError):
        return False


def last_whole(directory: Path, weights_only: bool = False) -> tuple[str | None, list[str]]:
    """The newest checkpoint that a run can be resumed from, and notes on those after it."""
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()]
    notes: list[str] = []
    for path in sorted(found, key=lambda path: -int(path.name[11:])):
        wrong = fault(path, weights_only)
        if wrong is None:
            return str(path), notes
        notes.append(f"{path.name} is skipped: {wrong} is missing or damaged.")
    return None, notes
