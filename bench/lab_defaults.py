"""Where the connection's defaults stand among their neighbours: one option changed at a time, on a dev split.

    python bench/lab_defaults.py [--lab DIR] [--setup facts] [--base 100]

Each variant is a cell of the lab: recipe `cc`, learning rate 5e-4, 8 epochs, base_decay 50 unless the variant says
otherwise. One base, one seed and some 170 questions a language: differences below three points say nothing. Prints a
table and writes bench/results/lab_defaults.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COMMON = {"learning_rate": 5e-4, "num_train_epochs": 8, "base_decay": 50.0}
VARIANTS: list[dict[str, Any]] = [
    {},
    *({"align_weight": weight} for weight in (1.0, 2.0, 10.0, 20.0)),
    *({"base_decay": decay} for decay in (0.0, 25.0, 75.0, 100.0)),
    *({"decision_bias": bias} for bias in (-4.0, 0.0, 2.0)),
    *({"alignment": alignment} for alignment in ("mean", "attention")),
    *({"transform": "low_rank", "transform_rank": rank} for rank in (4, 64)),
    {"transform": "none"},
    *({"paths": paths} for paths in ("both", "student", "fused")),
    {"fused_probability_end": 0.5},
    {"fused_probability_start": 0.5},
    *({"layers": layers} for layers in ([0, 1], [1, 2], [2, 3])),
    {"identity_weight": 5.0},
    {"connection_lr_scale": 5.0},
]


def main() -> None:
    """Run the cells and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="lab", help="the lab's directory: bases and cells in it are used")
    parser.add_argument("--setup", default="facts")
    parser.add_argument("--base", type=int, default=100)
    parser.add_argument("--result", default="bench/results/lab_defaults.json")
    args = parser.parse_args()
    from cctuning.lab.cells import Cell
    from cctuning.lab.experiment import circumstances
    from cctuning.lab.grid import english, run_cells, score

    cells = [Cell(args.setup, args.base, "cc", {**COMMON, **variant}) for variant in VARIANTS]
    records = run_cells(cells, Path(args.lab), {})
    found = [
        {"changed": variant, "x": round(score(record), 1), "english": round(english(record), 1)}
        for variant, record in zip(VARIANTS, records, strict=True)
    ]
    for one in found:
        named = ", ".join(f"{key} {value}" for key, value in one["changed"].items()) or "(the defaults)"
        print(f"| {named} | {one['x']} | {one['english']} |")
    record = {
        "command": "python bench/lab_defaults.py",
        "setup": args.setup,
        "base": args.base,
        "split": "dev",
        "common": COMMON,
        "variants": found,
        **circumstances(),
    }
    Path(args.result).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
