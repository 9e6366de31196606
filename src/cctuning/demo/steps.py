"""The demo: the whole method on the CLDR world, from nothing to a table, through the public API alone.

A base is made (once, cached), plain SFT, the alignment control and the connection are trained on the same rows by the
same trainer, all are scored on facts that only English text contained, the connection is folded, and the fold is
loaded with plain transformers and compared. What the table says is what was seen, good or bad.

The rows are facts in every language, and English ones that the base knows anyway, rehearsed. The settings below were
chosen on a dev split, with the same search for each recipe (docs/results/demo.md); the table is of the test split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.demo.base import BaseConfig, build_base
from cctuning.demo.cldr import World, build_world
from cctuning.demo.scoring import wilson
from cctuning.demo.tuning import options, right
from cctuning.demo.worlds import ENGLISH, majority, replayed, rows
from cctuning.evaluation.statistics import clustered_bootstrap
from cctuning.files import write_atomically
from cctuning.model.loading import RUN_FILE, Loaded, load
from cctuning.serving.exporting import export
from cctuning.training.run import resolved, train

HELD_OUT = "held-out.jsonl"

# Best of eight settings each on the dev split of a base apart, by one rule: docs/lab/cldr-start.md has the command.
START = {"reference_weights": "start"}
RECIPES: dict[str, dict[str, Any]] = {
    "vanilla": {"connection": "none", "learning_rate": 1e-3, "num_train_epochs": 8, "base_decay": 25.0},
    "align": {
        "paths": "student",
        "decision": "fixed",
        "decision_value": 1.0,
        "transform": "none",
        "align_weight": 1.0,
        "learning_rate": 5e-4,
        "num_train_epochs": 8,
        "base_decay": 25.0,
        **START,
    },
    "cc": {"learning_rate": 5e-4, "num_train_epochs": 8, "base_decay": 25.0, **START},
}


def fine_tune(base: Path, rows: Path, run: Path, recipe: dict[str, Any], seed: int) -> None:
    """Train a recipe into the run directory `run`; one that is there already with the same options is kept."""
    parts = options(base, rows, run, recipe, seed)
    record, config = run / RUN_FILE, run / "config.yaml"
    finished = record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"
    if finished and config.is_file() and config.read_text(encoding="utf-8") == resolved(*parts):
        return
    if run.exists():
        shutil.rmtree(run)  # the demo's own, from other options or cut off
    train(*parts)


def write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as JSON lines at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def run_demo(
    output: Path, cache: Path, seed: int = 0, base: BaseConfig | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Run it all and print the table.

    Args:
        output: directory for rows, runs, fold and results; runs of the same options in it are kept.
        cache: where the base is kept.
        seed: of world, base and training. base: how it is made. limit: facts, for a quick look.

    Returns:
        The results, as in `results.json`.
    """
    console = Console(width=118)
    world = build_world(seed=seed, limit=limit)
    console.rule("1 of 4  the base")
    base_path = build_base(world, cache, base)
    console.print(f"base: {base_path} (made once, kept)")
    console.rule("2 of 4  fine-tuning, the same rows for each")
    data = write_rows(replayed(world), output / "data" / "train.jsonl")
    write_rows(rows(world, "test"), output / "data" / HELD_OUT)
    for name, recipe in RECIPES.items():
        console.print(f"[bold]{name}[/bold]")
        fine_tune(base_path, data, output / name, recipe, seed)
    console.rule("3 of 4  held-out facts")
    flags = evaluate(world, base_path, output)
    console.rule("4 of 4  folding")
    difference = fold(output / "cc", output / "cc-folded", world)
    results = summarise(world, flags, difference)
    write_atomically(output / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    show(console, world, results)
    console.print(
        f"\nrows      {data}\nbase      {base_path}\nruns      "
        + ", ".join(str(output / recipe) for recipe in RECIPES)
        + f"\nfolded    {output / 'cc-folded'}\nresults   {output / 'results.json'}"
    )
    question = world.items(next(lang for lang in world.languages if lang != ENGLISH), "test")[0].prompt
    console.print(f"\ntry it    cctuning generate {output / 'cc-folded'} --prompt '{question}'", soft_wrap=True)
    return results


def evaluate(world: World, base: Path, output: Path) -> dict[str, dict[str, list[bool]]]:
    """Per model and language, which test items it answers exactly right.

    `cc` answers as it will run; `bypass` is the same model without its transform, `live` with English at hand.
    """
    flags: dict[str, dict[str, list[bool]]] = {}
    with tqdm(total=len(RECIPES) + 3, desc="Scoring", unit="model") as bar:

        def run(name: str, loaded: Loaded, **how: Any) -> None:
            flags[name] = right(loaded, world, "test", **how)
            bar.update()

        run("base", load(str(base)))
        for recipe in RECIPES:
            loaded = load(str(output / recipe))
            run(recipe, loaded)
            if recipe == "cc":
                run("bypass", loaded, bypass=True)
                run("live", loaded, live=True)
    return flags


def fold(run: Path, folded: Path, world: World) -> float:
    """Fold `run`, load it with plain transformers: the largest relative difference of logits over prompts."""
    if folded.exists():
        shutil.rmtree(folded)
    export(str(run), "merged", folded)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folded).eval(), AutoTokenizer.from_pretrained(folded)
    connected = load(str(run)).connected
    assert connected is not None
    worst = 0.0
    for lang in world.languages:
        prompts = [item.prompt for item in world.items(lang, "test")][:32]
        batch = tokenizer(prompts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            ours, theirs = connected(**inputs).logits, plain(**inputs).logits
        real = inputs["attention_mask"].bool()
        worst = max(worst, float((ours - theirs)[real].abs().max() / ours[real].abs().max()))
    return worst


def summarise(world: World, flags: dict[str, dict[str, list[bool]]], fold_difference: float) -> dict[str, Any]:
    """Shares and paired differences with their intervals, per language and over all but English."""
    others = [lang for lang in world.languages if lang != ENGLISH]
    results: dict[str, Any] = {
        "items_per_language": len(world.items(ENGLISH, "test")),
        "floor": asdict(wilson(majority(world))),
        "fold_largest_relative_logit_difference": fold_difference,
        "languages": {},
    }
    for lang in world.languages:
        entry = {name: asdict(wilson(by[lang])) for name, by in flags.items()}
        entry["cc - vanilla"] = gain(flags, "vanilla", [lang])
        entry["cc - align"] = gain(flags, "align", [lang])
        results["languages"][lang] = entry
    results["mean"] = {name: sum(sum(by[x]) / len(by[x]) for x in others) / len(others) for name, by in flags.items()}
    for other in ("vanilla", "align"):
        results["mean"][f"cc - {other}"] = gain(flags, other, others)
    return results


def gain(flags: dict[str, dict[str, list[bool]]], other: str, languages: Sequence[str]) -> dict[str, Any]:
    """cc minus another recipe, mean of `languages`, with its interval over facts (drawn with all their languages)."""
    ours, theirs = (np.array([flags[name][lang] for lang in languages], float).T for name in ("cc", other))
    return asdict(clustered_bootstrap([ours - theirs]))


def show(console: Console, world: World, results: dict[str, Any]) -> None:
    """Print the table and what to make of it."""
    table = Table(
        title=f"Facts that only English text contained: % right of {results['items_per_language']} test items a "
        f"language (majority floor {100 * results['floor']['value']:.0f})",
        caption="Change: cc - vanilla on the same items, with a 95 % bootstrap interval over items (one base, one "
        "seed). bypass: cc without its transform. live: cc handed the English question, the headroom.",
    )
    names = ("base", "vanilla", "align", "cc")
    for name in ("language", "text", *names, "change", "95 %", "bypass", "live"):
        table.add_column(name, justify="left" if name in ("language", "text") else "right")
    for lang, entry in results["languages"].items():
        change = entry["cc - vanilla"]
        language = world.languages[lang]
        table.add_row(
            f"{language.name} ({lang})",
            language.tier,
            *(f"{100 * entry[name]['value']:.0f}" for name in names),
            f"{100 * change['value']:+.0f}",
            f"{100 * change['low']:+.0f} to {100 * change['high']:+.0f}",
            *(f"{100 * entry[name]['value']:.0f}" for name in ("bypass", "live")),
            end_section=lang == ENGLISH,
        )
    mean, change = results["mean"], results["mean"]["cc - vanilla"]
    table.add_section()
    table.add_row(
        "mean but English",
        "",
        *(f"{100 * mean[name]:.1f}" for name in names),
        f"{100 * change['value']:+.1f}",
        f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}",
        *(f"{100 * mean[name]:.1f}" for name in ("bypass", "live")),
    )
    console.print(table)
    control = mean["cc - align"]
    english = results["languages"][ENGLISH]
    verdict = (
        "better than" if control["low"] > 0 else "worse than" if control["high"] < 0 else "not distinguishable from"
    )
    console.print(
        f"cc is {verdict} align, the control with alignment but no fusion and no transform: "
        f"{100 * control['value']:+.1f} ({100 * control['low']:+.1f} to {100 * control['high']:+.1f}).\n"
        f"English: {100 * english['base']['value']:.0f} before, {100 * english['vanilla']['value']:.0f} after vanilla,"
        f" {100 * english['cc']['value']:.0f} after cc.\n"
        f"The fold, loaded with plain transformers: logits agree to "
        f"{results['fold_largest_relative_logit_difference']:.1e} of the largest (fp32).\n"
        "The base is made so that its languages share concepts (English first, the others' embeddings grafted on\n"
        "English's); where a base's languages share nothing, nothing transfers. A demonstration, not evidence about\n"
        "real models."
    )
