"""`cctuning report RUN [RUN …] --output page.html`: write one HTML page on runs."""

from __future__ import annotations

from pathlib import Path

from cctuning.cli.options import Plain


def main(argv: list[str]) -> None:
    """Write the page."""
    parser = Plain("cctuning report", description="Write an HTML page on the training, cost and results of runs.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, or NAME=DIR; several are shown side by side"
    )
    parser.add_argument("--output", required=True, help="new .html file")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="DIR",
        help="directories of `cctuning evaluate`, or NAME=DIR: the runs, the baseline, the base",
    )
    parser.add_argument("--baseline", help="evaluation the others are compared with (default: base, else the first)")
    args = parser.parse_args(argv)
    from cctuning.report.build import build

    build(args.runs, Path(args.output), evaluations=args.evaluation, baseline=args.baseline)
    print(f"report: {args.output}")
