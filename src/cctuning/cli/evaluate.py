"""`cctuning evaluate MODEL [--suite {source,paper,all} | --rows FILE] --output DIR`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cctuning.cli.options import CHAT, Plain, add_chat


def main(argv: list[str]) -> None:
    """Parse, score, print the table."""
    parser = Plain(
        "cctuning evaluate", description="Score a model per language, on public benchmarks or rows of your own."
    )
    parser.add_argument("model", metavar="MODEL", help="a run, a fold, a LoRA, a model directory, or a hub name")
    parser.add_argument("--suite", choices=("source", "paper", "all"), help="benchmarks; default source")
    parser.add_argument("--rows", help="in place of a suite: held-out rows of your own, in any form that train reads")
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="in place of a suite: any of lm-eval's tasks or groups"
    )
    parser.add_argument("--include_path", help="a directory with lm-eval tasks of your own, for --tasks")
    parser.add_argument(
        "--languages", nargs="+", help="language codes; default all. The reference language is always added"
    )
    parser.add_argument("--benchmarks", nargs="+", help="names to keep, as the table shows them; default all")
    parser.add_argument("--limit", type=int, help="items a task (MMMLU: a subject); default all")
    parser.add_argument("--data", help="directory with the data sets; no network is used. Default: the hub")
    parser.add_argument("--output", required=True, help="directory for results; an unfinished one is gone on with")
    add_chat(parser)
    parser.add_argument("--thinking_tokens", type=int, default=1024, help="room to think, where the model does")
    parser.add_argument(
        "--reference", choices=("parallel",), help="over the live connection, with the reference language's prompt"
    )
    parser.add_argument("--bypass", action="store_true", help="without the connection's transform")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch_size", type=int, help="default: the largest that fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    from cctuning.errors import UserError

    if args.bypass and args.reference:
        raise UserError("--bypass and --reference exclude each other: without the connection, nothing is borrowed.")
    if args.rows:
        given = [name for name in ("suite", "data", "benchmarks") if getattr(args, name)]
        if given:
            raise UserError(f"--rows: in place of a suite; leave out --{', --'.join(given)}.")
    if args.tasks:
        given = [name for name in ("suite", "rows", "benchmarks") if getattr(args, name)]
        if given:
            raise UserError(f"--tasks: in place of a suite; leave out --{', --'.join(given)}.")
    os.environ["TQDM_DISABLE"] = "1"  # libraries' bars; ours, one a run, is shown in a log file too
    if args.data:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells each task's settings; results.json has them
    from rich.console import Console

    from cctuning.evaluation.results_table import caption, terminal
    from cctuning.evaluation.run import Options, evaluate

    options = Options(
        suite=args.suite or "source",
        rows=args.rows,
        tasks=args.tasks,
        include_path=args.include_path,
        languages=args.languages,
        benchmarks=args.benchmarks,
        limit=args.limit,
        data=args.data,
        chat=CHAT[args.chat],
        chat_template_kwargs=args.chat_template_kwargs,
        thinking_tokens=args.thinking_tokens,
        mode="parallel" if args.reference else "bypass" if args.bypass else "student",
        dtype=args.dtype,
        seed=args.seed,
        batch_size=args.batch_size,
        trust_remote_code=args.trust_remote_code,
    )
    record = evaluate(args.model, Path(args.output), options)
    console = Console()
    for table in terminal(record, console.width):
        console.print(table)
    console.print(caption(record))
    for note in record["notes"]:
        print(f"note: {note}")
    print(f"results: {args.output}/results.json, table: {args.output}/results.md, samples: {args.output}/samples/")
