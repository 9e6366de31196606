"""Where the connection's defaults stand among their neighbours: one option changed at a time, on dev splits.

    python bench/lab_defaults.py [--lab DIR] [--setup facts] [--bases 100 101 102] [--only OPTION ...]

Each variant is a cell of the lab on each base: recipe `cc-start+replay` (the defaults, English rehearsed), learning
rate 1e-3, 8 epochs, --base_decay (25) unless the variant says otherwise. The bases are none that a table reports.
Differences are paired over bases; with three of them an interval is wide, and it is given. Prints a table, writes
--result. Figures of the paper's reference are of `--recipe cc+replay`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

COMMON = {"learning_rate": 1e-3, "num_train_epochs": 8, "base_decay": 25.0}
VARIANTS: list[dict[str, Any]] = [
    {},
    *({"decision": "fixed", "decision_value": value} for value in (0.25, 0.5, 0.75)),
    *({"paths": paths} for paths in ("both", "student", "fused")),
    {"paths": "both", "distill_weight": 1.0},
    {"paths": "sampled", "fused_probability_end": 0.5},
    {"paths": "sampled", "fused_probability_start": 0.5, "fused_probability_end": 0.5},
    *({"align_weight": weight} for weight in (1.0, 2.0, 10.0, 20.0)),
    *({"paths": paths, "align_weight": weight} for paths in ("sampled", "fused") for weight in (0.0, 1.0)),
    *({"base_decay": decay} for decay in (0.0, 50.0, 75.0)),
    *({"decision_bias": bias} for bias in (-4.0, 0.0, 2.0)),
    *({"decision_rank": rank} for rank in (2, 16)),
    {"decision_bias": 0.0, "align_weight": 10.0},
    *({"decision": "fixed", "align_weight": weight} for weight in (2.0, 10.0)),
    *({"alignment": alignment} for alignment in ("mean", "attention")),
    *({"transform_rank": rank} for rank in (4, 64)),
    {"transform": "none"},
    {"transform": "dense"},
    {"transform": "nonlinear"},
    *({"layers": layers} for layers in ([0, 1], [1, 2], [2, 3])),
    {"scope": "prompt_end"},
    {"reference_gradient": True},
    {"identity_weight": 5.0},
    {"connection_lr_scale": 5.0},
    *({"learning_rate": rate} for rate in (5e-4, 2e-3)),
]


def main() -> None:
    """Run the cells and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="lab", help="the lab's directory: bases and cells in it are used")
    parser.add_argument("--setup", default="facts")
    parser.add_argument("--bases", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--recipe", default="cc-start+replay")
    parser.add_argument("--base_decay", type=float, default=COMMON["base_decay"])
    parser.add_argument("--only", nargs="*", help="variants that change none but these options")
    parser.add_argument("--result", help="default: bench/results/lab_defaults_REFERENCE_SETUP[_no_decay].json")
    args = parser.parse_args()
    common = {**COMMON, "base_decay": args.base_decay}
    from cctuning.evaluation.statistics import t_interval
    from cctuning.lab.cells import Cell
    from cctuning.lab.experiment import circumstances
    from cctuning.lab.grid import english, run_cells, score
    from cctuning.lab.recipes import RECIPES

    chosen = [one for one in VARIANTS if not args.only or set(one) <= set(args.only)]
    reference = RECIPES[args.recipe].method.get("reference_weights", "current")
    if reference == "start":  # which has no gradient
        chosen = [one for one in chosen if "reference_gradient" not in one]
    cells = [Cell(args.setup, base, args.recipe, {**common, **one}) for one in chosen for base in args.bases]
    records = run_cells(cells, Path(args.lab), {})
    shape = (len(chosen), len(args.bases))
    x, own = (np.array([measure(record) for record in records]).reshape(shape) for measure in (score, english))
    found = []
    print("| changed | x | minus the defaults | English | minus the defaults |\n| --- | --- | --- | --- | --- |")
    for number, variant in enumerate(chosen):
        row: dict[str, Any] = {"changed": variant}
        shown = [", ".join(f"{key} {value}" for key, value in variant.items()) or "(the defaults)"]
        for name, values in (("x", x), ("english", own)):
            mean, minus = float(values[number].mean()), values[number] - values[0]
            row[name] = {"mean": mean, "by_base": values[number].tolist()}
            apart = f"{minus.mean():+.1f}"
            if len(args.bases) > 1:
                interval = t_interval(minus.tolist())
                row[name]["minus"] = asdict(interval)
                apart += f" ({interval.low:+.1f} to {interval.high:+.1f})"
            shown += [f"{mean:.1f}", apart if number else ""]
        found.append(row)
        print(f"| {' | '.join(shown)} |")
    record = {
        "command": "python bench/lab_defaults.py",
        "setup": args.setup,
        "bases": args.bases,
        "split": "dev",
        "recipe": args.recipe,
        "common": common,
        "variants": found,
        **circumstances(),
    }
    decay = "" if args.base_decay else "_no_decay"
    place = args.result or f"bench/results/lab_defaults_{reference}_{args.setup}{decay}.json"
    Path(place).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
