"""`cctuning diagnose MODEL DATA [DATA …]`: whether the connection has something to carry over, before training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cctuning.cli.options import CHAT, Plain, add_chat
from cctuning.errors import UserError
from cctuning.languages import canonical, language_name

# Where the lab's conditions part (docs/lab/): below FOUND and EXPLAINED nothing transferred; where the language's own
# loss was less than GAP (nats a response) above the reference language's, there was nothing to gain.
FOUND, EXPLAINED, GAP = 0.1, 0.2, 0.5
# Chance finds one right prompt, however many rows there are, and so many of them once in 270 times (Poisson).
HITS = 5

ADVICE = {
    "rows": "too few different rows with a parallel to tell",
    "gap": "no gap to speak of: the model answers nearly as well in this language; plain SFT will do",
    "apart": "no way across: {name} activations do not follow from this language's; expect no transfer",
    "open": "a gap and a way across: the connection has something to carry over",
    "across": "a way across; whether there is a gap is not known (the rows hold no {name} answers)",
}


def main(argv: list[str]) -> None:
    """Measure and print a table, or write JSON too."""
    parser = Plain("cctuning diagnose", description="Measure, before training, what the connection could carry over.")
    parser.add_argument("model", metavar="MODEL", help="the untrained base: a directory or hub name")
    parser.add_argument(
        "data", nargs="*", metavar="DATA", help="rows as for `cctuning train`; some in the reference language help"
    )
    parser.add_argument("--parallel", nargs="+", default=[], metavar="FILE", help="parallel text without answers")
    parser.add_argument("--limit", type=int, default=256, help="rows a language (default 256)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--reference_language", default="en")
    add_chat(parser)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", help="write the figures as JSON here, a file that does not exist yet")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size", "max_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1, got {getattr(args, name)}.")
    if args.output and Path(args.output).exists():
        raise UserError(f"--output {args.output}: exists already; name a file that does not.")
    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise UserError(f"--output: {Path(args.output).parent} is no directory; make it, or name another place.")
    from rich.console import Console
    from rich.table import Table

    if bool(args.data) == bool(args.parallel):
        raise UserError("DATA or --parallel: give answered rows with a parallel, or parallel text; one of the two.")
    check_base(args.model)
    args.reference_language = canonical(args.reference_language, "--reference_language")
    if args.parallel:
        from cctuning.cli.diagnose_text import diagnose_text

        diagnose_text(args)
        return
    found = measure(args)
    name = language_name(args.reference_language)
    table = Table(title=f"{args.model}: what a connection could carry over", caption=CAPTION.format(name=name))
    for column in ("language", "rows", "own", name, "live", "share", "explained", "found", "layer"):
        table.add_column(column, justify="left" if column == "language" else "right")
    for one in found:
        table.add_row(
            one["language"],
            str(one["rows"]),
            *(_number(one[key], ".2f") for key in ("own", "reference", "live", "share", "explained")),
            _number(one["found"], ".0%"),
            str(one["layer"]),
        )
    Console(width=None if Console().is_terminal else 120).print(table)
    for one in found:
        print(f"{one['language']}: {ADVICE[one['verdict']].format(name=name)}")
    if args.output:
        text = json.dumps(_plain(found), indent=1, allow_nan=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")


CAPTION = (
    "own, {name}: nats a response, asked in the language and in {name}. live: own with the {name} prompt at hand, "
    "untrained, at its best share. explained: variance of {name} activations that follows from the language's own, "
    "held out, at the best layer; found: how often the right {name} prompt is the nearest."
)


def check_base(model: str) -> None:
    """Raise `UserError` where `model` is what training left: what is asked here is asked of what it starts from."""
    from cctuning.model.loading import LORA_CONFIG, RUN_FILE, base_of, read_record
    from cctuning.model.serialization import CONFIG_FILE

    folder = Path(model)
    kinds = {RUN_FILE: "a run", LORA_CONFIG: "a LoRA", CONFIG_FILE: "a model with a trained connection"}
    found = next((kind for file, kind in kinds.items() if (folder / file).is_file()), None)
    if found is None:
        return
    run = read_record(folder) if (folder / RUN_FILE).is_file() else {}
    base, _ = base_of(folder, run)
    told = f"the one it was made from, {base}" if base else "the one it was made from"
    raise UserError(f"{model}: {found}; diagnose takes the untrained base: name {told}.")


def measure(args: Any) -> list[dict[str, Any]]:
    """One entry a language, with a verdict in the words of `ADVICE`."""
    from datasets import Dataset

    from cctuning.analysis.diagnosis import diagnose, reference_losses
    from cctuning.analysis.observe import language_batches
    from cctuning.data import Encoder, encode_dataset, load_rows
    from cctuning.model.loading import load_base, load_tokenizer
    from cctuning.serving.answering import chat_of

    rows, _ = load_rows(args.data, reference_language=args.reference_language)
    foreign, english = choose(rows, args.limit)
    tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    chat = chat_of({}, tokenizer) if CHAT[args.chat] is None else args.chat == "yes"

    encoder = Encoder(
        tokenizer,
        max_length=args.max_length,
        max_reference_length=args.max_length,
        chat=chat,
        chat_template_kwargs=args.chat_template_kwargs,
    )

    def batches(some: list[dict[str, Any]]) -> list[Any]:
        encoded, _ = encode_dataset(Dataset.from_list(some), encoder, bad_rows="skip")
        return language_batches(encoded, tokenizer.pad_token_id, args.batch_size)

    foreign_batches = batches(foreign)
    model = load_base(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code).eval()
    languages = list(dict.fromkeys(row["lang"] for row in foreign))
    losses = reference_losses(model, {lang: batches(english[lang]) for lang in languages if english[lang]})
    found = []
    for one in tqdm(diagnose(model, foreign_batches, losses), total=len(languages), desc="Measuring", unit="language"):
        entry = {"language": one.language, "rows": one.rows, "own": one.own, "reference": one.reference}
        entry |= {"live": one.live, "share": one.share}
        best = max(one.layers, key=lambda layer: one.layers[layer].explained) if one.layers else None
        entry["layer"] = "" if best is None else best
        for name in ("explained", "found"):
            entry[name] = math.nan if best is None else getattr(one.layers[best], name)
        entry["by_layer"] = {layer: asdict(seen) for layer, seen in one.layers.items()}
        found.append(entry | {"verdict": verdict(entry, 0 if best is None else one.layers[best].rows)})
    return found


def choose(rows: Any, limit: int) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Up to `limit` rows a language, evenly spread; and for each the same questions in the reference language.

    A row in the reference language is made its own parallel, so that both sides go through the same code.
    """
    from cctuning.analysis.observe import spread

    every = rows.to_list()
    at_home = {
        json.dumps(row["prompt"]): {**row, "reference": row["prompt"]} for row in every if row["reference"] is None
    }
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in every:
        if row["reference"] is not None:
            by_language.setdefault(row["lang"] or "und", []).append(row)
    if not by_language:
        raise UserError("data: no row has a parallel in the reference language; `cctuning pair` makes them.")
    chosen, english = [], {}
    for lang, own in by_language.items():
        paired = [row for row in own if json.dumps(row["reference"]) in at_home] or own
        some = spread(paired, limit)
        chosen += [{**row, "lang": lang} for row in some]
        keys = (json.dumps(row["reference"]) for row in some)
        english[lang] = [at_home[key] for key in keys if key in at_home]
    return chosen, english


def verdict(entry: dict[str, Any], rows: int) -> str:
    """Which line of `ADVICE` the figures speak for, of which `explained` and `found` come from so many `rows`."""
    if math.isnan(entry["explained"]):
        return "rows"
    clear = entry["found"] >= max(FOUND, HITS / rows)
    if rows < HITS / FOUND and not clear:  # of so few, FOUND may be chance, and so may EXPLAINED
        return "rows"
    if entry["explained"] < EXPLAINED and not clear:
        return "apart"
    if math.isnan(entry["reference"]) or math.isnan(entry["own"]):
        return "across"
    return "open" if entry["own"] - entry["reference"] > GAP else "gap"


def _plain(value: Any) -> Any:
    """As JSON can hold it: null for what is no number."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
