"""`cctuning generate MODEL [--prompt … | --file …] [--reference …] [--lang …]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cctuning.cli.options import Plain, add_model_options, chosen
from cctuning.errors import UserError
from cctuning.files import check_new_file, write_jsonl
from cctuning.languages import UNKNOWN

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel
    from cctuning.serving.answering import Answerer


def main(argv: list[str]) -> None:
    """Answer one prompt, or the prompts of a file as JSON Lines."""
    parser = Plain("cctuning generate", description="Answer prompts with a run, an export or any other model.")
    parser.add_argument("model", metavar="MODEL", help="a run, a model directory, or a hub name")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one prompt")
    what.add_argument("--file", help="rows with a column `prompt` (JSON Lines, Parquet, CSV, …)")
    parser.add_argument("--output", help="with --file: file to write instead of stdout")
    parser.add_argument(
        "--reference", help="parallel text of the prompt, for the live connection; with --file: its column"
    )
    parser.add_argument(
        "--lang",
        help="language of the prompts, where the file has no column `lang`. Prompts in the reference language run as "
        "in training: without a reference, and without an adaptive connection",
    )
    parser.add_argument("--system", help="system message, for chat models")
    parser.add_argument("--bypass", action="store_true", help="run without the transform of the connection")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy decoding")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, with a --temperature")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts at a time")
    add_model_options(parser)
    args = parser.parse_args(argv)
    from cctuning.languages import canonical, same
    from cctuning.model.loading import load
    from cctuning.serving.answering import Answerer, chat_notes, reference_language

    if args.output and args.file is None:
        raise UserError("--output: only with --file; the answer to --prompt is printed.")
    if args.output:
        check_new_file(Path(args.output))
    if args.bypass and args.reference is not None:
        raise UserError("--bypass and --reference exclude each other: without the transform no reference is used.")
    if args.reference is not None and not args.reference.strip():
        raise UserError(
            "--reference: empty; give the prompt's parallel text (with --file: its column), or leave it out."
        )
    language = reference_language(args.model)
    for name in ("reference", "bypass", "lang"):
        if getattr(args, name) and language is None:
            raise UserError(
                f"--{name}: {args.model} has no connection that reads it (it is an export, or a run with "
                "connection: align or none); leave the option out."
            )
    if args.lang and language:
        args.lang = language if same(canonical(args.lang, "--lang"), language) else canonical(args.lang)
    if args.prompt is not None and args.reference and args.lang == language:
        raise UserError(
            f"--lang {args.lang}: a prompt in the reference language has no other reference; leave --reference out."
        )
    rows = _rows(args, language or "en") if args.file is not None else []
    loaded = load(args.model, **chosen(args, "dtype trust_remote_code"))
    names = "chat chat_template_kwargs system bypass batch_size max_new_tokens temperature seed"
    answerer = Answerer(loaded, **chosen(args, names))
    for note in chat_notes(loaded.run, answerer.encoder):
        print(f"note: {note}", file=sys.stderr)
    languages = [args.lang] if args.prompt is not None else [row["lang"] for row in rows]
    _note_unknown(loaded.connected, languages)
    if args.prompt is not None:
        print(answerer([args.prompt], [args.reference] if args.reference else None, languages=languages)[0])
        _note_unfinished(answerer, 1)
        return
    prompts = [row["prompt"] for row in rows]
    references = [row["reference"] for row in rows] if args.reference else None
    answers = answerer(prompts, references, progress=True, languages=languages, rows=rows)
    note_alike(prompts, answers)
    _note_unfinished(answerer, len(answers))
    found = [_answered(row, answer) for row, answer in zip(rows, answers, strict=True)]
    if args.output:
        write_jsonl(Path(args.output), found)
        print(f"{len(answers)} answers: {args.output}", file=sys.stderr)
    else:
        sys.stdout.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in found)


def _answered(row: dict[str, Any], answer: str) -> dict[str, Any]:
    prompt = row["prompt"]
    if not isinstance(prompt, str):  # as messages are in a file: without keys of training, or without a value
        prompt = [{key: held for key, held in turn.items() if held is not None and key != "train"} for turn in prompt]
    lang = {} if row["lang"] == UNKNOWN else {"lang": row["lang"]}
    return {**lang, "prompt": prompt, "answer": answer}


def note_alike(prompts: Sequence[Any], answers: Sequence[str]) -> None:
    """Print a note if several prompts got one and the same answer."""
    if len(answers) > 1 and len({*answers}) == 1 and len({str(prompt) for prompt in prompts}) > 1:
        alike = "the same" if answers[0] else "empty"
        print(
            f"note: all {len(answers)} answers are {alike}; check that prompts are rendered as in training",
            file=sys.stderr,
        )


def _note_unfinished(answerer: Answerer, count: int) -> None:
    """Print a note if answers were cut off."""
    if cut := len(answerer.unfinished):
        most = answerer.options["max_new_tokens"]
        print(f"note: {cut} of {count} answers were cut off at --max_new_tokens {most}.", file=sys.stderr)


def _note_unknown(connected: ConnectedModel | None, languages: list[str | None]) -> None:
    """Print a note where an adaptive connection gets prompts of unknown language; a gated one does not need it."""
    unknown = sum(language in (None, UNKNOWN) for language in languages)
    if connected is not None and not connected.mixes_references and unknown:
        print(
            f"note: {unknown} of {len(languages)} prompts have no language and are connected; those in "
            f"{connected.reference_language!r} should not be: give --lang, or a column `lang`.",
            file=sys.stderr,
        )


def _rows(args: argparse.Namespace, language: str) -> list[dict[str, Any]]:
    """The rows of --file; what the reader noticed is printed."""
    from cctuning.data import Source, load_rows

    columns = {"reference": args.reference} if args.reference else {}
    source = Source(args.file, lang=args.lang or UNKNOWN, columns=columns)
    try:
        dataset, report = load_rows([source], reference_language=language, require_reference=False, to_answer=True)
    except UserError as error:
        raise UserError(str(error).replace("no row to train on", "no prompt")) from error
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    return list(dataset)
