"""`cctuning generate MODEL [--prompt … | --file …] [--reference …]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cctuning.cli.options import Plain
from cctuning.errors import UserError


def main(argv: list[str]) -> None:
    """Answer prompts: one on the command line to stdout, or a file of rows to JSON lines."""
    parser = Plain("cctuning generate", description="Answer prompts with a run, a fold, a LoRA, or any causal LM.")
    parser.add_argument("model", metavar="MODEL", help="a run, a model directory, or a hub name")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one prompt")
    what.add_argument("--file", help="rows with a prompt column (JSON lines, Parquet, CSV, …)")
    parser.add_argument(
        "--reference",
        help="the prompt's parallel: answers over the live connection. With --file: the column that holds it",
    )
    parser.add_argument("--system", help="system message (chat models)")
    parser.add_argument("--chat", choices=("auto", "yes", "no"), default="auto", help="render with the chat template")
    parser.add_argument("--bypass", action="store_true", help="answer without the connection's transform")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", help="with --file: write here and not to stdout")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    from cctuning.model.loading import load
    from cctuning.serving.answering import Answerer

    if args.output:
        _writable(args.output, args.file)
    if args.bypass and args.reference is not None:
        raise UserError("--bypass and --reference exclude each other: without the connection, nothing is borrowed.")
    rows = list(_rows(args.file, args.reference)) if args.file is not None else []
    loaded = load(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    for name in ("reference", "bypass"):
        if getattr(args, name) and loaded.connected is None:
            raise UserError(
                f"--{name}: {args.model} has no connection (folded or plain); give the run it was trained in."
            )
    answerer = Answerer(
        loaded,
        chat={"auto": None, "yes": True, "no": False}[args.chat],
        system=args.system,
        bypass=args.bypass,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    if args.prompt is not None:
        print(answerer([args.prompt], [args.reference] if args.reference else None)[0])
        return
    prompts = [row["prompt"] for row in rows]
    references = [row["reference"] for row in rows] if args.reference else None
    answers = answerer(prompts, references, progress=True)
    text = "".join(
        json.dumps({"prompt": row["prompt"], "answer": answer}, ensure_ascii=False) + "\n"
        for row, answer in zip(rows, answers, strict=True)
    )
    if args.output:
        from cctuning.model.adapter import write_atomically

        write_atomically(Path(args.output), text)
        print(f"{len(answers)} answers: {args.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)


def _writable(output: str, file: str | None) -> None:
    """Refuse before the work is done what would be refused after it."""
    path = Path(output)
    if file is None:
        raise UserError("--output: goes with --file; the answer to a --prompt is printed.")
    if path.exists():
        raise UserError(f"--output {output}: exists already; name a file that does not.")
    if not path.parent.is_dir():
        raise UserError(f"--output {output}: no directory {path.parent}; make it first.")


def _rows(path: str, reference: str | None) -> Iterator[dict[str, Any]]:
    from cctuning.data import Source, load_rows

    columns = {"reference": reference} if reference else {}
    dataset, _ = load_rows([Source(path, lang="und", columns=columns)], require_reference=False)
    yield from dataset
