"""The demo: make a base, tune it, score it on held-out facts, merge, and print one table.

A base is made and cached. Plain SFT (`vanilla`), the default (`align`) and the paper's connection (`cc`) are trained
on the same rows by the same trainer. `cctuning evaluate` scores all of them on facts that the base has read in English
alone, and `cctuning compare` says what differs: the table and the report page show these figures and no others. `cc`
is merged into a plain checkpoint at the end.

The rows are questions in every language and, as rehearsal, English ones that the base can answer. Settings of
`vanilla` and `cc` were chosen on the dev split of another base (docs/lab/cldr.md); `align` has those of `vanilla`.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from cctuning.connection import ConnectionConfig
from cctuning.data import Source
from cctuning.demo.base import ENGLISH, BaseConfig, build_base
from cctuning.demo.cldr import PlacesWorld, majority, replayed, rows
from cctuning.evaluation.compare import Comparison, compare
from cctuning.evaluation.run import Options, evaluate
from cctuning.files import write_atomically
from cctuning.model.loading import RUN_FILE
from cctuning.report.build import build
from cctuning.report.model_analysis import Options as ReportOptions
from cctuning.serving.exporting import export
from cctuning.training import CCConfig
from cctuning.training.options import RunOptions
from cctuning.training.run import resolved, train

OF_TRAINER = ("learning_rate", "num_train_epochs", "base_decay", "connection_lr_scale")
COMMON = {"num_train_epochs": 8, "base_decay": 25.0}
RECIPES: dict[str, dict[str, Any]] = {
    "vanilla": {"connection": "none", "learning_rate": 1e-3, **COMMON},
    "align": {"connection": "align", "learning_rate": 1e-3, **COMMON},
    "cc": {"connection": "gated", "learning_rate": 5e-4, **COMMON},
}
BASELINE = "vanilla"


def options(
    base: Path, data: Path, run: Path, method: Mapping[str, Any], seed: int
) -> tuple[RunOptions, ConnectionConfig, CCConfig]:
    """Return the options of a run, as `cctuning train` would parse them.

    Args:
        method: options of the connection, and those of `OF_TRAINER`.
    """
    args = CCConfig(
        str(run),
        per_device_train_batch_size=32,
        max_length=64,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        activation_checkpointing=False,
        logging_steps=0.1,
        save_strategy="no",
        report_to="none",
        seed=seed,
        **{name: value for name, value in method.items() if name in OF_TRAINER},
    )
    connection = ConnectionConfig(**{name: value for name, value in method.items() if name not in OF_TRAINER})
    return RunOptions(model=str(base), data=[str(data)]), connection.settled(start_kept=True), args


def write_rows(given: list[dict[str, Any]], path: Path) -> Path:
    """Write rows as JSON lines to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given))
    return path


def run_demo(
    output: Path, cache: Path, seed: int = 0, config: BaseConfig | None = None, limit: int | None = None
) -> Comparison:
    """Run all steps and print the table.

    Args:
        output: directory for rows, runs, scores and the page; finished runs with the same options are kept.
        cache: directory of the base.
        seed: of world and training. config: how the base is made. limit: number of facts.

    Returns:
        The comparison that the table and the page show.
    """
    console = Console(width=118)
    world = PlacesWorld(seed=seed, limit=limit)
    console.rule("1 of 4  the base")
    base = build_base(world, cache, config)
    console.rule("2 of 4  fine-tuning, the same rows for each recipe")
    data = write_rows(replayed(world), output / "data" / "train.jsonl")
    held_out = write_rows(rows(world, "test"), output / "data" / "held-out.jsonl")
    for name, recipe in RECIPES.items():
        console.print(f"[bold]{name}[/bold]")
        _fine_tune(base, data, output / name, recipe, seed)
    console.rule("3 of 4  held-out facts")
    models = {"base": base, **{name: output / name for name in RECIPES}}
    scored = _score(models, held_out, output / "evaluation")
    found = compare(list(scored.items()), BASELINE)
    console.rule("4 of 4  merging")
    merged = output / "cc-merged"
    shutil.rmtree(merged, ignore_errors=True)
    checked = export(str(output / "cc"), "merged", merged).checked
    page = output / "report.html"
    page.unlink(missing_ok=True)
    with redirect_stderr(io.StringIO()):
        build(
            [str(output / name) for name in RECIPES],
            page,
            data=Source(str(held_out)),
            evaluations=[f"{name}={place}" for name, place in scored.items()],
            baseline=BASELINE,
            options=ReportOptions(rows=64, examples=4),
        )
    _show(console, world, found)
    console.print(
        f"The merged cc, a plain checkpoint: {checked}.\n"
        "The base is made so that its languages share concepts; where a base's languages share nothing, nothing\n"
        "transfers. One base and one seed: a demonstration, no evidence about real models.\n\n"
        f"base      {base}\nruns      {', '.join(str(output / name) for name in RECIPES)}\nmerged    {merged}\n"
        f"report    {page}",
        soft_wrap=True,
    )
    question = world.items("ru" if "ru" in world.languages else ENGLISH, "test")[0].prompt
    console.print(f"\ntry it    cctuning generate {merged} --prompt '{question}'", soft_wrap=True)
    return found


def _fine_tune(base: Path, data: Path, run: Path, recipe: Mapping[str, Any], seed: int) -> None:
    """Train a recipe into `run`, unless it holds a finished run with the same options."""
    parts = options(base, data, run, recipe, seed)
    record, config = run / RUN_FILE, run / "config.yaml"
    finished = record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"
    if not finished or config.read_text(encoding="utf-8") != resolved(*parts):
        shutil.rmtree(run, ignore_errors=True)  # with other options, or stopped
        train(*parts)


def _score(models: Mapping[str, Path], held_out: Path, output: Path) -> dict[str, Path]:
    """Score every model as `cctuning evaluate --rows` does; the directories of their scores."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    shutil.rmtree(output, ignore_errors=True)
    # One bar for all models: those of the libraries would fill the screen.
    for name, model in tqdm(models.items(), desc="Scoring", unit="model", file=sys.stdout):
        with redirect_stderr(io.StringIO()):
            evaluate(str(model), output / name, Options(rows=str(held_out), batch_size=256))
    return {name: output / name for name in models}


def _show(console: Console, world: PlacesWorld, found: Comparison) -> None:
    """Print the comparison as a table."""
    flags = majority(world)
    floor = f"{100 * sum(flags) / len(flags):.0f} %"
    table = Table(
        title="Facts that the base read in English alone: words of the answer that are right (F1, %),\n"
        f"{len(flags)} questions in each language; the most frequent answer is right in {floor}",
        caption="change: against vanilla (plain SFT) on the same questions, with its 95 % interval over questions.",
    )
    systems = ["base", *(name for name in RECIPES if name != BASELINE)]
    for column in ("language", "text read", "base", BASELINE, "align", "cc", "align: change", "cc: change"):
        table.add_column(column, justify="left" if column in ("language", "text read") else "right", no_wrap=True)
    keys = [("language", lang) for lang in world.languages] + [("mean", None)]
    for kind, lang in keys:
        row = {one.system: one for one in found.rows if (one.kind, one.language) == (kind, lang)}
        values = {name: row[name].value for name in systems} | {BASELINE: row["cc"].baseline}
        language = world.languages[lang] if lang else None
        table.add_row(
            f"{language.name} ({lang})" if language else "mean but English",
            language.tier if language else "",
            *(f"{100 * (values[name] or 0):.1f}" for name in ("base", BASELINE, "align", "cc")),
            *(_signed(row[name].difference, row[name].low, row[name].high) for name in ("align", "cc")),
            end_section=lang == ENGLISH or lang == list(world.languages)[-1],
        )
    console.print(table)


def _signed(*figures: float | None) -> str:
    value, low, high = (100 * (figure or 0) for figure in figures)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
