"""Experiments on pre-trained models: `python -m experiments.real demo|run|plan|table|oracle|fetch`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cctuning.errors import UserError
from experiments.real.bases import BASES
from experiments.real.worlds import ENGLISH

EXAMPLE = '{"rate": 1e-4, "text": {"labels": 100}}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for bad input."""
    given = _arguments().parse_args(argv)
    try:
        commands = {"demo": _demo, "run": _run, "plan": _plan, "table": _table, "oracle": _oracle, "fetch": _fetch}
        status = commands[given.command](given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status or 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("run", help="one cell: train, score, keep the record")
    one.add_argument("base", help=f"one of {', '.join(BASES)}")
    one.add_argument("world")
    one.add_argument("recipe")
    one.add_argument(
        "--setting", default="{}", help=f"options as JSON, such as {EXAMPLE}: fields of Setting (recipes.py), Text"
    )
    one.add_argument("--seed", type=int, default=0)
    _places(one)

    shown = commands.add_parser("demo", help="plain SFT and parallel text side by side, in ten minutes")
    _places(shown)

    plan = commands.add_parser("plan", help="the cells of a plan (JSON lines)")
    plan.add_argument("plan", type=Path)
    plan.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    plan.add_argument("--seconds", type=float, default=1e9, help="no cell is started after this")
    _places(plan)

    table = commands.add_parser("table", help="tables of records")
    table.add_argument("results", type=Path, nargs="+", help="JSON lines of records")

    where = commands.add_parser("oracle", help="where facts get lost between languages (BMLAMA-17)")
    where.add_argument("base", choices=list(BASES))
    where.add_argument("--accept", nargs="*", default=[], help="bases whose terms you have read and accept")
    where.add_argument("--items", type=int, default=1000, help="at most so many test questions")
    where.add_argument("--labels", type=int, default=300, help="facts that are trained, in each language")
    where.add_argument("--rate", type=float, default=1e-4)
    where.add_argument("--epochs", type=float, default=3)

    fetch = commands.add_parser("fetch", help="a base, written out")
    fetch.add_argument("base", choices=list(BASES))
    fetch.add_argument("--accept", nargs="*", default=[], help="bases whose terms you have read and accept")
    return parser


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("results/real"), help="folder of records")
    parser.add_argument("--accept", nargs="*", default=[], help="bases whose terms you have read and accept")


def _run(given: argparse.Namespace) -> None:
    from experiments.real.cells import Lab, cell_of
    from experiments.real.figures import accuracy, others
    from experiments.real.registry import recipe_of

    told = {"base": given.base, "world": given.world, "recipe": given.recipe, "seed": given.seed}
    try:
        setting = json.loads(given.setting)
    except ValueError as error:
        raise UserError(f"--setting: not JSON ({error}).") from None
    if not isinstance(setting, dict) or not isinstance(setting.get("text", {}), dict):
        raise UserError(f"--setting: expected a JSON object such as {EXAMPLE}, got {given.setting}.")
    cell = cell_of({**told, "setting": setting})
    recipe_of(cell.recipe)  # before a base is loaded
    lab = Lab(given.output / "cells", given.accept, packs=given.output / "packs")  # as a plan keeps them
    record = lab.run(cell)
    print(cell.label)
    for split in ("dev", "test"):
        by = {lang: accuracy([record], split, [lang]) for lang in record["right"][split]}
        told_ = "  ".join(f"{lang} {value:.1f}" for lang, value in by.items())
        print(f"{split:5} English {by[ENGLISH]:.1f}  x {accuracy([record], split, others(record)):.1f}   {told_}")
    print(f"training {record['seconds']['training']:.0f} s, {record['memory_mb']} MB; record: {lab.place(cell)}")


def _demo(given: argparse.Namespace) -> int:
    from experiments.real.demo import demo

    return demo(given.output, given.accept)


def _plan(given: argparse.Namespace) -> int:
    import multiprocessing
    import time

    from experiments.real.cells import Lab, cell_of
    from experiments.real.gpu.workers import Queue, plan_of, work
    from experiments.real.registry import recipe_of

    plan, lab = plan_of(given.plan), Lab(given.output, given.accept)
    for line in plan:  # what no cell can do without is missed before the first one starts, and fetched once
        cell = cell_of(line["cell"])
        recipe_of(cell.recipe)
        lab.known(cell.base, cell.world)
    queue = Queue(plan, given.output / "results.jsonl")
    given.output.mkdir(parents=True, exist_ok=True)
    queue.reset()
    until, spawn = time.time() + given.seconds, multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=work, args=(number, queue, until, {}, given.accept)) for number in range(given.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed := queue.failed():
        print(f"{failed} of {len(plan)} cells failed (above); the same command tries them again.", file=sys.stderr)
    return int(failed > 0)


def _table(given: argparse.Namespace) -> None:
    from experiments.real.page import page
    from experiments.real.table import records_of

    print(page(records_of(given.results)))


def _oracle(given: argparse.Namespace) -> None:
    from experiments.real.oracle import oracle

    print(oracle(given.base, given.accept, given.items, given.labels, given.rate, given.epochs))


def _fetch(given: argparse.Namespace) -> None:
    from experiments.real.bases import written_out

    print(written_out(BASES[given.base], given.accept))
