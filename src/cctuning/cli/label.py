"""`cctuning label MODEL --parallel FILE … --output rows.jsonl`: answer the English side of parallel text.

Each answer becomes the response of a row whose prompt is the other side: rows in other languages for a model that was
trained on English rows alone (pseudo-labels). The parallel text must be of the kind of text that the task asks about.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from cctuning.cli.generate import note_alike
from cctuning.cli.options import Plain, add_model_options, chosen
from cctuning.errors import UserError
from cctuning.files import check_new_file, write_jsonl
from cctuning.languages import canonical

FIELD = "{text}"
SHOWN = 5  # most frequent answers in the summary


def main(argv: list[str]) -> None:
    """Answer the reference side of each pair and write rows in the other language."""
    parser = Plain(
        "cctuning label", description="Answer the English side of parallel text; write rows in its language."
    )
    parser.add_argument("model", metavar="MODEL", help="a run on English rows, an export or any other model")
    parser.add_argument("--parallel", nargs="+", required=True, metavar="FILE", help="parallel text, as for train")
    parser.add_argument("--output", required=True, help="new file for the rows (JSON Lines)")
    parser.add_argument(
        "--template", default=FIELD, help="the task's prompt; {text} stands for the text, in either language"
    )
    parser.add_argument(
        "--answers", nargs="+", metavar="FILE", help="rows with answers; keep only answers that they have"
    )
    parser.add_argument(
        "--reference_language", help="language of the side that is answered; default: that of the run, or en"
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts at a time")
    add_model_options(parser)
    args = parser.parse_args(argv)
    check_new_file(Path(args.output))
    if args.template.count(FIELD) != 1:
        raise UserError(f"--template {args.template!r}: expected {FIELD} once, where the text belongs.")
    from cctuning.data.loading import load_rows
    from cctuning.data.parallel.pairs import load_parallel
    from cctuning.model.loading import load, resolve
    from cctuning.serving.answering import Answerer, chat_notes

    home = args.reference_language or resolve(args.model)[1].get("reference_language") or "en"
    language = canonical(home, "--reference_language")
    pairs, report = load_parallel(args.parallel, reference_language=language, bad_rows="skip")
    known = None
    if args.answers:
        answered, _ = load_rows(args.answers, reference_language=language, require_reference=False)
        known = {response.strip() for response in answered.unique("response") if response is not None}
        if not known:
            raise UserError(f"--answers: no row of {', '.join(args.answers)} has an answer; name rows that do.")
    loaded = load(args.model, **chosen(args, "dtype trust_remote_code"))
    options = chosen(args, "chat chat_template_kwargs batch_size max_new_tokens")
    answerer = Answerer(loaded, strip=False, **options)  # a response may begin with a space, as those of the rows do
    for note in [*report.notes, *chat_notes(loaded.run, answerer.encoder)]:
        print(f"note: {note}", file=sys.stderr)
    asked = [args.template.replace(FIELD, text) for text in dict.fromkeys(pairs["reference"])]
    answers = answerer(asked, progress=True, languages=[language] * len(asked))
    note_alike(asked, answers)
    cut = {asked[place]: None for place in answerer.unfinished}  # as rows they would teach the model to stop there
    given = dict(zip(asked, answers, strict=True)) | cut
    rows, lost = rows_of(pairs.to_list(), given, args.template, language, known)
    if not rows:
        raise UserError(
            f"{args.model}: no usable answer to {len(asked)} prompts ({_listed(lost)}); nothing was written."
        )
    write_jsonl(Path(args.output), rows)
    counts = Counter(row["lang"] for row in rows)
    print(f"{len(rows)} rows ({', '.join(f'{lang} {n}' for lang, n in counts.most_common())}): {args.output}")
    most = Counter(row["response"] for row in rows).most_common()
    frequent = ", ".join(f"{answer[:40]!r} {count / len(rows):.0%}" for answer, count in most[:SHOWN])
    print(f"{len(most)} different answers, most often {frequent}")
    if lost:
        print(f"note: pairs that were left out: {_listed(lost)}", file=sys.stderr)


def rows_of(
    pairs: list[dict[str, Any]],
    answers: Mapping[str, str | None],
    template: str,
    language: str,
    known: Set[str] | None = None,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of pairs and the answers to their references (None: cut off); how many pairs make no row, by reason.

    known: the only answers that make a row; None: any.
    """
    from cctuning.data.text import leak

    rows, lost = [], Counter[str]()
    for pair in pairs:
        prompt, reference = (template.replace(FIELD, pair[side]) for side in ("text", "reference"))
        answer = answers[reference]
        if answer is None:
            lost["the answer is longer than --max_new_tokens"] += 1
        elif not answer:
            lost["no answer"] += 1
        elif known is not None and answer.strip() not in known:
            lost["the answer is not in --answers"] += 1
        elif leak(prompt, answer, reference):
            lost["only the reference text contains the answer"] += 1
        else:
            row = {"prompt": prompt, "response": answer, "lang": pair["lang"], f"prompt_{language}": reference}
            rows.append(row)
    return rows, lost


def _listed(lost: Counter[str]) -> str:
    return ", ".join(f"{count} ({why})" for why, count in lost.most_common())
