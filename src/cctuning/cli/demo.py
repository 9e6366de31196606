"""`cctuning demo`: the whole method on a small world."""

from __future__ import annotations

import os
from pathlib import Path

from cctuning.cli.options import Plain


def main(argv: list[str]) -> None:
    """Parse and run."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cctuning"
    parser = Plain("cctuning demo", description="Make a base, tune it three ways, score, fold, and print the table.")
    parser.add_argument(
        "--output", default="demo", help="directory for rows, runs, the fold and results (default demo)"
    )
    parser.add_argument("--cache_dir", default=str(home), help=f"where the base is kept (default {home})")
    parser.add_argument("--seed", type=int, default=0, help="of world, base and training")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)  # between TRL and transformers, nothing a reader can do
    from cctuning.lab.demo import run_demo

    run_demo(Path(args.output), Path(args.cache_dir), args.seed)
