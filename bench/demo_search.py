"""Choose the demo's settings on the dev split: eight for each recipe, the same base, rows and trainer.

    python bench/demo_search.py [--cache_dir DIR] [--output bench/results/demo_search.json]

Prints a line a setting and writes all of them with machine and versions. The test split is not touched.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RATES = (2e-4, 3e-4, 5e-4, 1e-3)
ALIGN = {"paths": "student", "decision": "fixed", "decision_value": 1.0, "transform": "none"}


def grid() -> Iterator[tuple[str, dict[str, Any]]]:
    """Eight settings a recipe: four learning rates, and two of what else matters most to it."""
    for rate, epochs in itertools.product(RATES, (4, 8)):
        yield "vanilla", {"connection": "none", "learning_rate": rate, "num_train_epochs": epochs}
    for rate, weight in itertools.product(RATES, (1.0, 5.0)):
        yield "align", {**ALIGN, "align_weight": weight, "learning_rate": rate, "num_train_epochs": 8}
    for rate, weight in itertools.product(RATES, (2.0, 5.0)):
        yield "cc", {"align_weight": weight, "learning_rate": rate, "num_train_epochs": 8}


def main() -> None:
    """Run the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", default=str(Path.home() / ".cache" / "cctuning"))
    parser.add_argument("--output", default="bench/results/demo_search.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="this of that many parts of the grid, to use several cores")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import datasets
    import torch
    import transformers

    from cctuning.lab.base import build_base
    from cctuning.lab.cldr import build_world
    from cctuning.lab.demo import fine_tune, right, write_rows
    from cctuning.lab.worlds import ENGLISH
    from cctuning.model.loading import load

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    world = build_world(seed=args.seed)
    base = build_base(world, Path(args.cache_dir))
    part, parts = (int(number) for number in args.part.split("/"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(world, Path(folder) / "train.jsonl")
        for i, (recipe, settings) in enumerate(grid()):
            if i % parts != part:
                continue
            started, run = time.time(), Path(folder) / f"{recipe}-{i}"
            fine_tune(base, rows, run, settings, args.seed)
            flags = right(load(str(run)), world, "dev")
            share = {lang: round(100 * sum(by) / len(by), 1) for lang, by in flags.items()}
            others = [value for lang, value in share.items() if lang != ENGLISH]
            entry = {"recipe": recipe, **settings, "mean": round(sum(others) / len(others), 1), "languages": share}
            found.append(entry)
            named = {
                key: settings[key] for key in ("learning_rate", "num_train_epochs", "align_weight") if key in settings
            }
            seconds = time.time() - started
            print(f"{recipe:8} {named} mean {entry['mean']} English {share[ENGLISH]} ({seconds:.0f} s)", flush=True)
    record = {
        "command": "python bench/demo_search.py",
        "split": "dev",
        "items_per_language": len(world.items(ENGLISH, "dev")),
        "seed": args.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("cc-tuning", "torch", "transformers", "trl", "babel")},
        "settings": found,
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
