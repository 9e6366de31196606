"""`cctuning train --config recipe.yaml [--any-option value] [--accelerate_config FILE [--num_processes N]]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

from cctuning.cli import ERRORS
from cctuning.cli.options import Group, parse
from cctuning.cli.recipes import accelerate_configs, find
from cctuning.data.readers import check_place
from cctuning.errors import UserError, nearest_path

# Common options of TRL and transformers, listed by --help.
# fmt: off
USUAL = [
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "max_length",
    "optim", "weight_decay", "max_grad_norm", "bf16", "activation_checkpointing", "train_sampling_strategy",
    "seed", "report_to", "logging_steps", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "save_total_limit", "load_best_model_at_end", "resume_from_checkpoint", "chat_template_path",
    "eos_token", "use_cpu",
]
# fmt: on
LAUNCHING = ("accelerate_config", "num_processes")  # options of accelerate's launcher


DESCRIPTIONS = {
    "train": "Fine-tune a causal LM on rows, with parallel text (--parallel) in the languages to reach.",
    "align": "Make a language pack: align other languages of a model to English by parallel text alone. "
    "cctuning align MODEL --config pack --parallel FILE ... --output_dir DIR.",
}


def main(argv: list[str], verb: str = "train") -> None:
    """Train, and print where the results are; with --accelerate_config in several processes."""
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in LAUNCHING:
        launcher.add_argument(f"--{name}", nargs="?", const="")
    launching, argv = launcher.parse_known_args(argv)
    if any(value is not None for value in vars(launching).values()):
        raise SystemExit(launch(launching.accelerate_config, launching.num_processes, [verb, *argv]))
    check_paths(argv)
    from cctuning.connection import ConnectionConfig
    from cctuning.training import CCConfig
    from cctuning.training.options import RunOptions

    description = (
        f"{DESCRIPTIONS[verb]} On several devices: add --accelerate_config NAME (ddp, fsdp2, zero2, zero3, or a file "
        "of `accelerate config`) and --num_processes N."
    )
    kinds = (RunOptions, ConnectionConfig, CCConfig)
    options, connection, args = parse(f"cctuning {verb}", description, kinds, argv, groups())
    for name in ("data", "eval_data") if verb == "align" else ():
        if getattr(options, name):
            raise UserError(
                f"{name}: align reads parallel text only; leave it out (--config pack is a recipe for align), or use "
                "cctuning train to train on answers too."
            )
    from cctuning.training.run import train

    try:
        trainer = train(options, connection, args)
    except KeyboardInterrupt:
        print(
            f"\n{args.output_dir}: to continue from the last checkpoint add --resume_from_checkpoint true",
            file=sys.stderr,
        )
        raise
    if trainer.is_world_process_zero() and not options.dry_run:
        run = args.output_dir
        if trainer.by_language is not None and (table := trainer.by_language.table()):
            print(f"\n{table}")
        print(f"\nrun:        {run}\nmodel:      {run}/model")
        settled = trainer.connected.config.connection
        if settled == "align" and not options.data:
            pack = f"{run}/model"
            if options.tune == "lora":
                pack = "MERGED"
                print(f"next:       cctuning export {run} --format merged --output {pack}")
            print(f"next:       cctuning train --config vanilla --model {pack} --data ROWS --output_dir DIR")
            print("            (or any other SFT on it)")
        elif settled in ("align", "none"):
            print(f"try it:     cctuning generate {run} --prompt '...'")
        elif connection.mergeable:
            print(f"next:       cctuning export {run} --format merged --output DIR")
        else:
            print(f"next:       cctuning generate {run} --prompt '...' (this connection cannot be merged)")


def groups() -> list[Group]:
    """The options in groups, this package's first."""
    from trl import SFTConfig

    from cctuning.connection import ConnectionConfig
    from cctuning.training import CCConfig
    from cctuning.training.options import AdapterOptions, RunOptions

    def of(*kinds: type, without: type | None = None) -> set[str]:
        left = {option.name for option in fields(without)} if without else set()
        return {option.name for kind in kinds for option in fields(kind)} - left

    return [
        ("run", "Model and rows", of(RunOptions, without=AdapterOptions) | {"output_dir"}),
        ("connection", "The connection", of(ConnectionConfig)),
        ("lora", "LoRA and quantisation", of(AdapterOptions)),
        ("training", "Training", of(CCConfig, without=SFTConfig) | set(USUAL)),
        ("library", "Other options of TRL and transformers", of(CCConfig)),
    ]


def launch(config: str | None, processes: str | None, argv: list[str]) -> int:
    """Run `cctuning` with `argv` under accelerate's launcher; returns the exit status. `processes`: their number, None
    for that of the configuration."""
    if config is None:
        raise UserError("--num_processes: needs --accelerate_config.")
    config = str(find(config, accelerate_configs(), "--accelerate_config"))
    if processes is not None and not (processes.isdigit() and int(processes) > 0):
        raise UserError(f"--num_processes {processes!r}: expected an integer of at least 1.")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command += ["--num_processes", processes] if processes is not None else []
    with tempfile.TemporaryDirectory() as scratch:
        error = Path(scratch) / "error"
        environment = {**os.environ, ERRORS: str(error)}
        status = subprocess.run([*command, "-m", "cctuning", *argv], env=environment).returncode
        if status and error.is_file():  # printed by a process, above the launcher's own message
            raise UserError(error.read_text(encoding="utf-8"))
    return status


def check_paths(argv: list[str]) -> None:
    """Raise `UserError` if a flag names a model or rows that do not exist, before torch and TRL, which take seconds to
    import, are loaded."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", nargs="?")
    parser.add_argument("--data", nargs="*", default=[])
    parser.add_argument("--eval_data", nargs="*", default=[])
    flags, _ = parser.parse_known_args(argv)
    if flags.model is not None:
        _check_model(flags.model)
    for path in [*flags.data, *flags.eval_data]:
        if not path.lstrip().startswith("{"):  # a mapping
            check_place(path)


def _check_model(name: str) -> None:
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"model: {name}: no such directory.{nearest_path(folder)} Give a model directory, or a hub name like "
            "org/name."
        )
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise UserError(f"model: {name}: no config.json in it; give the directory of a model, or a hub name.")
