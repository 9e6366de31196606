"""The demo: make a base, then train, evaluate, compare, export and report with the commands that a user types."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cctuning.cli import main as cctuning
from cctuning.demo.world import ENGLISH, Size, World, build_base
from cctuning.files import write_atomically

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
    """Print and run the commands one after the other; returns the exit status of the last one."""
    status = 0
    for number, step in enumerate(steps, 1):
        console.rule(f"{number} of {len(steps)}  {step.title}", align="left")
        status = run_step(console, output, step)
        if status:
            break
    return status


def run_step(console: Console, output: Path, step: Step) -> int:
    """Run one command, unless the same command has written its target already; returns the exit status."""
    console.print(f"$ cctuning {shlex.join(step.command)}", style="dim")
    kept, target = output / COMMANDS, step.target
    done: dict[str, list[str]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if target.exists() and done.get(target.name) == step.command:
        console.print(f"kept from before: {target}")
        return cctuning(step.again) if step.again else 0
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    started = time.time()
    status = cctuning(step.command)
    console.print(f"({time.time() - started:.0f} s)")
    if not status:
        write_atomically(kept, json.dumps({**done, target.name: step.command}, indent=1) + "\n")
    return status


def write_rows(files: Mapping[Path, Sequence[Mapping[str, Any]]]) -> None:
    """Write rows as JSON Lines."""
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def run_demo(output: Path, cache: Path, seed: int = 0, size: Size | None = None) -> int:
    """Run all steps; returns the exit status.

    Args:
        output: directory for rows, runs, scores and the page.
        cache: directory of the base.
        seed: of world, base and training.
        size: of world and base, for tests.
    """
    console, world = Console(width=100, soft_wrap=True), World(seed, size)
    base = build_base(world, cache)
    rows, pairs, held_out = (output / f"{name}.jsonl" for name in ("rows", "pairs", "held-out"))
    # English questions that the base can answer are among the rows, so that it keeps its English.
    answered = world.rows("sft") + world.rows("text", [ENGLISH])
    write_rows({rows: answered, pairs: world.pairs("parallel"), held_out: world.rows("test")})
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
