"""Paired differences on a dev split: each recipe minus plain SFT at the same settings, on the same base and questions.

    python bench/lab_dev.py docs/lab/results/tico-records.jsonl [--plain vanilla+replay]

For a search that no test split followed: intervals are over questions (drawn whole, in all languages), of one base,
and say nothing of another. Reads the lab's records, a JSON line each, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cctuning.evaluation.statistics import Interval, clustered_bootstrap
from cctuning.lab.worlds import ENGLISH


def matrix(record: dict, languages: list[str]) -> np.ndarray:
    """(questions, languages) of 0 and 100."""
    return np.array([[100.0 * int(flag) for flag in record["right"]["student"][lang]] for lang in languages]).T


def main() -> None:
    """Read, pair, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--plain", default="vanilla+replay")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.records.read_text(encoding="utf-8").splitlines()]
    plain = {json.dumps(one["cell"]["settings"]): one for one in records if one["cell"]["recipe"] == args.plain}

    def shown(found: Interval) -> str:
        return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"

    print("| recipe | settings | x | English |\n| --- | --- | --- | --- |")
    for record in records:
        rival = plain.get(json.dumps(record["cell"]["settings"]))
        if rival is None or rival is record:
            continue
        others = [lang for lang in record["right"]["student"] if lang != ENGLISH]
        x, english = (
            clustered_bootstrap([matrix(record, languages) - matrix(rival, languages)])
            for languages in (others, [ENGLISH])
        )
        settings = ", ".join(f"{name} {value}" for name, value in record["cell"]["settings"].items())
        print(f"| `{record['cell']['recipe']}` | {settings} | {shown(x)} | {shown(english)} |")


if __name__ == "__main__":
    main()
