"""`cctuning demo`: the whole method on a small made-up world."""

from __future__ import annotations

import os
from pathlib import Path

from cctuning.cli.options import Plain
from cctuning.extras import require


def main(argv: list[str]) -> None:
    """Parse the options and run the demo."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cctuning"
    parser = Plain("cctuning demo", description="Make a base, train it three ways, score, export, and write a report.")
    parser.add_argument("--output", default="demo", help="directory for rows, runs and results (default demo)")
    parser.add_argument("--cache_dir", default=str(home), help=f"directory of the base (default {home})")
    parser.add_argument("--seed", type=int, default=0, help="of world and training")
    args = parser.parse_args(argv)
    for module, extra in (("lm_eval", "evaluate"), ("lingua", "evaluate"), ("matplotlib", "report")):
        require(module, "cctuning demo", extra)  # now, since scores and the report come last
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    from cctuning.demo.steps import run_demo

    if status := run_demo(Path(args.output), Path(args.cache_dir), args.seed):
        raise SystemExit(status)
