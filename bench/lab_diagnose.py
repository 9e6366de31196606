"""What `cctuning diagnose` says of the lab's conditions, to hold against what training gave there.

    python bench/lab_diagnose.py [--lab DIR] [--base 0] [--setups …]

Runs the command itself on the base of each setup and the rows of its dev split; prints a table and writes
bench/results/lab_diagnose.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

SETUPS = ("facts", "facts-faint", "things", "facts-turned", "facts-apart", "facts-told", "cldr")


def main() -> None:
    """Diagnose each setup and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="lab", help="the lab's directory: bases in it are used")
    parser.add_argument("--base", type=int, default=0)
    parser.add_argument("--setups", nargs="+", default=list(SETUPS))
    parser.add_argument("--result", default="bench/results/lab_diagnose.json")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from cctuning.cli import main as cctuning
    from cctuning.lab.base import build_base
    from cctuning.lab.cells import world_and_base
    from cctuning.lab.experiment import circumstances
    from cctuning.lab.worlds import rows

    found = {}
    for setup in args.setups:
        world, config = world_and_base(setup, args.base)
        base = build_base(world, Path(args.lab) / "bases", config)
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder) / "dev.jsonl", Path(folder) / "found.json"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows(world, "dev")), encoding="utf-8")
            if cctuning(["diagnose", str(base), str(data), "--output", str(out)]):
                raise SystemExit(f"{setup}: cctuning diagnose failed")
            found[setup] = json.loads(out.read_text(encoding="utf-8"))
    for setup, languages in found.items():
        for one in languages:
            figures = " | ".join(f"{one[key]:.2f}" for key in ("own", "reference", "live", "explained", "found"))
            print(f"| {setup} | {one['language']} | {figures} | {one['verdict']} |")
    record = {"command": "python bench/lab_diagnose.py", "base": args.base, "split": "dev", "setups": found}
    Path(args.result).write_text(json.dumps(record | circumstances(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
