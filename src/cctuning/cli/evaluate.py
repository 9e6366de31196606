"""`cctuning evaluate MODEL [MODEL …] --output DIR`: score models per language."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path

from cctuning.cli.options import Plain, add_model_options, chosen
from cctuning.errors import UserError

BASE = "base"


def main(argv: list[str]) -> None:
    """Score the models, print their results and, of several, the comparison."""
    parser = Plain(
        "cctuning evaluate", description="Score models per language, on public benchmarks or on rows of your own."
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run, a merged model, a LoRA, a model directory or a hub name, or NAME=MODEL; `base` stands for the "
        "base of the runs. Several are scored one after the other and compared",
    )
    parser.add_argument("--output", required=True, help="directory for results; of several models, DIR/NAME each")
    parser.add_argument("--suite", choices=("source", "paper", "all", "current"), help="benchmarks (default: source)")
    parser.add_argument("--rows", help="instead of a suite: held-out rows in any format that train reads")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="instead of a suite: any lm-eval tasks or groups")
    parser.add_argument("--include_path", help="directory with lm-eval tasks of your own, for --tasks")
    parser.add_argument(
        "--languages",
        nargs="+",
        help="language codes; the reference language is always added (default: all; of suite current, those that the "
        "runs were trained in)",
    )
    parser.add_argument("--benchmarks", nargs="+", help="names to keep, as the table shows them (default: all)")
    parser.add_argument("--limit", type=int, help="items per task; of a group, per task in it (default: all)")
    parser.add_argument("--data", help="directory with the data sets, without network access (default: the hub)")
    parser.add_argument("--thinking_tokens", type=int, default=1024, help="additional tokens for models that think")
    parser.add_argument("--bypass", action="store_true", help="without the connection's transform")
    parser.add_argument("--baseline", help="model the others are compared with (default: base, else the first)")
    parser.add_argument("--batch_size", type=int, help="default: 64, on a CPU 16; halved while memory runs out")
    parser.add_argument("--seed", type=int, default=0, help="of few-shot examples and of tasks that sample")
    add_model_options(parser)
    args = parser.parse_args(argv)
    _check(args)
    os.environ["TQDM_DISABLE"] = "1"  # the libraries' bars; evaluate shows its own
    if args.data:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it logs the settings of each task
    from rich.console import Console
    from rich.markdown import Markdown

    from cctuning.evaluation.result_tables import results_page
    from cctuning.evaluation.run import Options, evaluate_models

    args.suite, args.mode = args.suite or "source", "bypass" if args.bypass else "student"
    options = Options(**chosen(args, " ".join(one.name for one in fields(Options) if one.name in args)))
    output, models = Path(args.output), _models(args.models)
    names = [name for name, _ in models]
    if args.baseline is not None and args.baseline not in names:
        raise UserError(f"--baseline {args.baseline}: expected one of {', '.join(names)}.")
    done = evaluate_models(models, output, options)
    console = Console()
    for _, directory, record in done:
        console.print(Markdown(results_page(record, whole=False)))
        for note in record["notes"]:
            print(f"note: {note}")
        print(f"results: {directory}/results.json, table: {directory}/results.md, samples: {directory}/samples/")
    if len(done) > 1:
        from cctuning.cli.compare import show
        from cctuning.evaluation.compare import compare

        show(compare([(name, directory) for name, directory, _ in done], args.baseline))


def _check(args: argparse.Namespace) -> None:
    for option, others in (("rows", ("suite", "data", "benchmarks")), ("tasks", ("suite", "rows", "benchmarks"))):
        given = [f"--{name}" for name in others if getattr(args, option) and getattr(args, name)]
        if given:
            raise UserError(f"--{option}: used instead of a suite; leave out {', '.join(given)}.")
    if args.include_path and not args.tasks:
        raise UserError("--include_path: has tasks for --tasks, which is not given; name some of them.")
    if args.include_path and not Path(args.include_path).is_dir():
        raise UserError(f"--include_path {args.include_path}: no such directory.")


def _models(arguments: list[str]) -> list[tuple[str, str]]:
    """Name and path of each model; `base` is replaced by the base of the runs beside it."""
    from cctuning.evaluation.saved_results import parse_named
    from cctuning.model.loading import resolve
    from cctuning.training.directory import read_options

    models = parse_named(arguments)
    if BASE not in [path for _, path in models] or Path(BASE).exists():
        return models
    runs = {Path(path): run for _, path in models if path != BASE and (run := resolve(path)[1])}
    bases = {
        str(Path(run["model"]).resolve()) if Path(run["model"]).exists() else run["model"] for run in runs.values()
    }
    if len(bases) != 1:
        raise UserError(f"base stands for the base of the runs, and these have {len(bases)}; give its path.")
    base = next(iter(runs.values()))["model"]
    for options in (read_options(run) for run in runs if (run / "config.yaml").is_file()):
        if options.get("revision"):
            raise UserError(
                f"base: the runs were trained from revision {options['revision']} of {base}; download it and give its "
                "directory, since a hub name stands for the newest revision."
            )
    return [(name, base if path == BASE else path) for name, path in models]
