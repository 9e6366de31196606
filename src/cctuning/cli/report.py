"""`cctuning report RUN [RUN …] --output page.html`."""

from __future__ import annotations

from pathlib import Path

from cctuning.cli.options import Plain


def main(argv: list[str]) -> None:
    """Parse, build the page, say where it lies and what it lacks."""
    parser = Plain("cctuning report", description="One HTML page on what runs learned, what it cost and what it gave.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, or NAME=DIR; several lie side by side"
    )
    parser.add_argument("--output", required=True, help="the page, an .html file that does not exist yet")
    parser.add_argument(
        "--data", help="rows with parallels to look at the connection with, best held out; default: the run's own"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="PART=COLUMN",
        help="columns of --data that have names of their own, as in prompt=text reference=text_en",
    )
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="DIR",
        help="directories of `cctuning evaluate`, or NAME=DIR: the runs, the baseline, the base",
    )
    parser.add_argument("--baseline", help="of the evaluations: name or directory; default the first")
    parser.add_argument("--examples", type=int, default=0, help="prompts answered by each model; default none")
    parser.add_argument("--rows", type=int, default=128, help="rows a language to look at")
    parser.add_argument("--no_analysis", action="store_true", help="load no model: records and evaluations alone")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the models' own code")
    args = parser.parse_args(argv)
    from cctuning.data import Source
    from cctuning.errors import UserError
    from cctuning.report.build import build
    from cctuning.report.model_analysis import Options

    for name, least in (("rows", 1), ("batch_size", 1), ("examples", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, got {getattr(args, name)}.")
    if args.no_analysis and (args.data is not None or args.examples):
        raise UserError("--no_analysis loads no model, so --data and --examples have no use; leave one side out.")
    pairs = [one.partition("=") for one in args.columns]
    if args.columns and (args.data is None or not all(part and column for part, _, column in pairs)):
        raise UserError("--columns: expected PART=COLUMN, with --data, as in prompt=text reference=text_en.")
    data = Source(args.data, columns={part: column for part, _, column in pairs}) if args.data is not None else None
    options = Options(
        rows=args.rows,
        batch_size=args.batch_size,
        examples=args.examples,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
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
