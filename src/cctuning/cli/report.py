"""`cctuning report RUN [RUN …] --output page.html`: write one HTML page on runs."""

from __future__ import annotations

from pathlib import Path

from cctuning.cli.options import Plain, chosen
from cctuning.extras import require


def main(argv: list[str]) -> None:
    """Write the page, and print notes on what it lacks."""
    parser = Plain("cctuning report", description="Write an HTML page on what runs learned, their cost and results.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, or NAME=DIR; several are shown side by side"
    )
    parser.add_argument("--output", required=True, help="new .html file")
    parser.add_argument(
        "--data",
        help="rows with reference prompts to analyse, best held out (default: training rows of the first run)",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="PART=COLUMN",
        help="names of columns of --data, as in prompt=text reference=text_en",
    )
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="DIR",
        help="directories of `cctuning evaluate`, or NAME=DIR: the runs, the baseline, the base",
    )
    parser.add_argument("--baseline", help="evaluation the others are compared with (default: the first)")
    parser.add_argument("--examples", type=int, default=0, help="number of prompts that each model answers")
    parser.add_argument("--rows", type=int, default=128, help="rows per language to analyse (default: 128)")
    parser.add_argument("--no_analysis", action="store_true", help="load no model, use records and evaluations alone")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the models' own code")
    args = parser.parse_args(argv)
    require("matplotlib", "cctuning report")
    if args.evaluation:
        require("scipy", "cctuning report --evaluation", "report")
    from cctuning.data import Source
    from cctuning.errors import UserError
    from cctuning.report.build import build
    from cctuning.report.model_analysis import Options

    for name, least in (("rows", 1), ("batch_size", 1), ("examples", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, got {getattr(args, name)}.")
    if args.no_analysis and (args.data is not None or args.examples):
        raise UserError("--no_analysis loads no model; leave out --data and --examples, or --no_analysis.")
    columns = dict(one.partition("=")[::2] for one in args.columns)
    if args.columns and (args.data is None or not all([*columns, *columns.values()])):
        raise UserError("--columns: expected PART=COLUMN, with --data, as in prompt=text reference=text_en.")
    data = Source(args.data, columns=columns) if args.data is not None else None
    options = Options(**chosen(args, "rows batch_size examples dtype trust_remote_code"))
    notes = build(
        args.runs,
        Path(args.output),
        data=data,
        evaluations=args.evaluation,
        baseline=args.baseline,
        analysis=not args.no_analysis,
        options=options,
    )
    for note in notes:
        print(f"note: {note}")
    print(f"report: {args.output}")
