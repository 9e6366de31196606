"""The demo: make a base, then train, evaluate, compare, export and report with the commands that a user types."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cctuning.cli import main as cctuning
from cctuning.demo.world import ENGLISH, Size, World, build_base
from cctuning.files import write_json, write_jsonl

COMMANDS = "commands.json"  # of the steps that are done, so that a second call keeps them
TRAINING = shlex.split(
    "--per_device_train_batch_size 32 --max_length 64 --lr_scheduler_type cosine --warmup_steps 10 "
    "--num_train_epochs 8 --base_decay 25 --activation_checkpointing false --logging_steps 0.1 --save_strategy no "
    "--report_to none"
)
RUNS: dict[str, tuple[str, list[str]]] = {
    "plain": ("Plain SFT", shlex.split("--connection none --learning_rate 1e-3")),
    "align": ("The same rows, and parallel text", shlex.split("--connection align --learning_rate 1e-3")),
    "cc": ("The same, with the paper's connection", shlex.split("--connection gated --learning_rate 5e-4")),
}


@dataclass(frozen=True)
class Step:
    """A command of the demo."""

    title: str
    target: Path  # what it writes
    command: list[str]
    again: list[str] | None = None  # a command to run instead where the target exists, to show its result again


def run_steps(console: Console, output: Path, steps: Sequence[Step]) -> int:
    """Print and run the commands, except those that have written their target already; returns the exit status."""
    kept = output / COMMANDS
    done: dict[str, list[str]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for number, step in enumerate(steps, 1):
        console.rule(f"{number} of {len(steps)}  {step.title}", align="left")
        console.print(f"$ cctuning {shlex.join(step.command)}", style="dim")
        target, command = step.target, step.command
        if target.exists() and done.get(target.name) == command:
            console.print(f"kept from before: {target}")
            command = step.again or []
        elif target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if command and (status := cctuning(command)):
            return status
        done[target.name] = step.command
        write_json(kept, done)
    return 0


def run_demo(output: Path, cache: Path, seed: int = 0, size: Size | None = None) -> int:
    """Run all steps in `output`, with the base in `cache`, and return the exit status; `size` is for tests."""
    console, world = Console(width=100, soft_wrap=True), World(seed, size)
    base = build_base(world, cache)
    rows, pairs, held_out = (output / f"{name}.jsonl" for name in ("rows", "pairs", "held-out"))
    # English questions that the base can answer are among the rows, so that it keeps its English.
    answered = world.rows("sft") + world.rows("text", [ENGLISH])
    output.mkdir(parents=True, exist_ok=True)
    for path, content in ((rows, answered), (pairs, world.pairs("parallel")), (held_out, world.rows("test"))):
        write_jsonl(path, content)
    steps = []
    for name, (title, own) in RUNS.items():
        command = ["train", "--model", str(base), "--data", str(rows), *TRAINING, *own, "--seed", str(seed)]
        command += [] if name == "plain" else ["--parallel", str(pairs)]
        steps.append(Step(title, output / name, [*command, "--output_dir", str(output / name)]))
    runs = [str(output / name) for name in RUNS]
    scores, merged, page = output / "scores", output / "merged", output / "report.html"
    scored = [f"base={base}", *runs]
    evaluate = ["evaluate", *scored, "--rows", str(held_out), "--batch_size", "128", "--baseline", "plain"]
    compare = ["compare", *(str(scores / name) for name in ("base", *RUNS)), "--baseline", "plain"]
    report = ["report", *runs, "--evaluation", *compare[1:]]
    steps += [
        Step("Facts that the base read in English alone", scores, [*evaluate, "--output", str(scores)], compare),
        Step("A plain checkpoint", merged, ["export", runs[-1], "--format", "merged", "--output", str(merged)]),
        Step("A page", page, [*report, "--output", str(page)]),
    ]
    status = run_steps(console, output, steps)
    if not status:
        prompt = world.rows("test", ["qaa"])[0]["prompt"]
        console.print(
            "\nThe base is made so that its languages share concepts. One base and one seed: a demonstration, no "
            f"evidence about real models.\n\nmodel   {merged}\nreport  {page}\n"
            f"try it  cctuning generate {merged} --prompt '{prompt}'"
        )
    return status
