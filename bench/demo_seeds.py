"""The demo over several bases: each seed makes its own split of facts, base and training.

    python bench/demo_seeds.py --seeds 0 1 2 3 4 --output DIR [--cache_dir DIR]

Writes bench/results/demo_seeds.json: per seed the test figures, and over seeds the mean paired differences with 95 %
intervals (Student's t over seeds). Settings are the demo's, chosen on seed 0's dev split. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # two-sided, by number of seeds


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval of one figure over seeds, in points."""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    half = T95[len(values)] * spread / len(values) ** 0.5
    return {"mean": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}


def main() -> None:
    """Run and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", required=True, help="directory for the runs, one folder a seed")
    parser.add_argument("--cache_dir", default=str(Path.home() / ".cache" / "cctuning"))
    parser.add_argument("--result", default="bench/results/demo_seeds.json")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    from cctuning.lab.demo import run_demo

    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        results = run_demo(Path(args.output) / f"seed-{seed}", Path(args.cache_dir), seed)
        english = {name: results["languages"]["en"][name]["value"] for name in ("base", "vanilla", "align", "cc")}
        mean = {name: value for name, value in results["mean"].items() if isinstance(value, float)}
        runs.append({"seed": seed, "mean": mean, "English": english})
    figures = {}
    for other in ("vanilla", "align", "bypass"):
        gains = [100 * (run["mean"]["cc"] - run["mean"][other]) for run in runs]
        figures[f"cc - {other}"] = over_seeds(gains)
    for other in ("vanilla", "align"):
        gains = [100 * (run["English"]["cc"] - run["English"][other]) for run in runs]
        figures[f"English: cc - {other}"] = over_seeds(gains)
    gains = [100 * (run["mean"]["align"] - run["mean"]["vanilla"]) for run in runs]
    figures["align - vanilla"] = over_seeds(gains)
    record = {
        "command": f"python bench/demo_seeds.py --seeds {' '.join(map(str, args.seeds))}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("cc-tuning", "torch", "transformers", "trl", "babel")},
        "over_seeds": figures,
        "runs": runs,
    }
    Path(args.result).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name:24} {figure['mean']:+.1f} ({figure['low']:+.1f} to {figure['high']:+.1f})")


if __name__ == "__main__":
    main()
