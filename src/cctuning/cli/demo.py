"""`cctuning demo`: the whole method on a small world."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cctuning.cli.options import Plain
from cctuning.extras import require


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
    for module in ("lm_eval", "lingua"):  # the last step scores the models; say now that it cannot
        require(module, "cctuning demo", "evaluate")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)  # between TRL and transformers, nothing a reader can do
    from cctuning.demo.steps import run_demo

    output = Path(args.output)
    run_demo(output, Path(args.cache_dir), args.seed)
    print(f"report    {report(output)}")


def report(output: Path) -> Path:
    """Score the demo's models as `cctuning evaluate --rows` does, and lay them side by side on a page.

    Returns:
        The page; made anew each time.
    """
    import io
    import logging
    from contextlib import redirect_stderr

    from tqdm.auto import tqdm

    from cctuning.data import Source
    from cctuning.demo.steps import HELD_OUT, RECIPES
    from cctuning.evaluation.run import Options, evaluate
    from cctuning.model.loading import read_record
    from cctuning.report.build import build
    from cctuning.report.model_analysis import Options as Looked

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows, scored, page = str(output / "data" / HELD_OUT), output / "evaluation", output / "report.html"
    shutil.rmtree(scored, ignore_errors=True)
    page.unlink(missing_ok=True)
    models = {name: str(output / name) for name in RECIPES} | {"base": read_record(output / "cc")["model"]}
    # One bar for it all: the libraries' own, a screen of them, would push the demo's table out of sight.
    with tqdm(total=len(models) + 1, desc="Report", unit="step") as bar, redirect_stderr(io.StringIO()):
        for name, model in models.items():
            evaluate(model, scored / name, Options(rows=rows, batch_size=256))
            bar.update()
        build(
            [str(output / name) for name in RECIPES],
            page,
            data=Source(rows),
            evaluations=[f"{name}={scored / name}" for name in models],
            baseline="vanilla",
            options=Looked(rows=64, examples=4),
        )
        bar.update()
    return page
