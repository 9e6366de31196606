"""`cctuning diagnose MODEL DATA …` or `--parallel FILE …`: measure, before training, whether alignment can help."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cctuning.cli.options import CHAT, Plain, add_chat
from cctuning.errors import UserError
from cctuning.languages import canonical, language_name

# Thresholds between the conditions of the lab (docs/lab/), not calibrated on real models: below FOUND and EXPLAINED
# nothing transferred; with a gap below GAP (nats per response) there was nothing to gain.
FOUND, EXPLAINED, GAP = 0.1, 0.2, 0.5
# One right prompt is found by chance, whatever the number of rows, and HITS of them once in 270 times (Poisson).
HITS = 5

# Verdict: what to expect, and what to set.
ADVICE = {
    "rows": ("too few different rows with a reference prompt to tell", "use more rows"),
    "gap": (
        "expect little: the model answers almost as well in this language as in {name}",
        "connection: none (plain fine-tuning)",
    ),
    "apart": (
        "expect no transfer: {name} activations cannot be predicted from those of this language",
        "connection: none, or first align the languages with parallel text (cctuning align)",
    ),
    "open": (
        "transfer is possible: answers are worse than in {name}, whose activations can be predicted",
        "connection: gated",
    ),
    "across": (
        "transfer is possible, but the gap is unknown: the rows have no answers in {name}",
        "connection: gated; add rows in {name} to measure the gap",
    ),
}


COLUMNS = 9  # layers in the table, from the first to the last
# Least share of texts found among some 64 to 256 references; what to expect, and what to set.
TEXT_ADVICE = (
    (0.8, "close to {name} already: expect little from alignment", "connection: none (plain fine-tuning)"),
    (0.2, "partly aligned: alignment can start from this", "connection: align"),
    (
        0.0,
        "far from {name}: the model hardly knows the language, or the text is not parallel",
        "connection: align if the text is parallel; more text, or a model that knows the language, may help more",
    ),
)


def main(argv: list[str]) -> None:
    """Measure, print a table with advice, and save the figures if asked."""
    parser = Plain("cctuning diagnose", description="Measure, before training, whether a connection can help.")
    parser.add_argument("model", metavar="MODEL", help="the untrained model: a directory or hub name")
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="rows as for `cctuning train`, best with some in the reference language",
    )
    parser.add_argument("--parallel", nargs="+", default=[], metavar="FILE", help="instead of DATA: parallel text")
    parser.add_argument("--limit", type=int, default=256, help="rows per language (default: 256)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--reference_language", default="en")
    add_chat(parser)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", help="new JSON file for the figures")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size", "max_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1, got {getattr(args, name)}.")
    if args.output and Path(args.output).exists():
        raise UserError(f"--output {args.output}: exists already; name a new file.")
    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise UserError(f"--output: {Path(args.output).parent} is not a directory; create it or use another path.")
    if bool(args.data) == bool(args.parallel):
        raise UserError(
            "expected either DATA or --parallel: rows with answers and reference prompts, or parallel text."
        )
    check_base(args.model)
    args.reference_language = canonical(args.reference_language, "--reference_language")
    found = diagnose_text(args) if args.parallel else diagnose_rows(args)
    if args.output:
        text = json.dumps(_plain(found), indent=1, allow_nan=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")


def diagnose_rows(args: Any) -> list[dict[str, Any]]:
    """Measure the gap and the way across for rows with answers, and print a table with advice."""
    found = measure(args)
    name = language_name(args.reference_language)
    columns = ["language", "rows", "own", name, "live", "share", "explained", "found", "layer"]
    rows = [
        [
            one["language"],
            str(one["rows"]),
            *(_number(one[key], ".2f") for key in ("own", "reference", "live", "share", "explained")),
            _number(one["found"], ".0%"),
            str(one["layer"]),
        ]
        for one in found
    ]
    _print_table(f"{args.model}: what a connection could transfer", columns, rows, CAPTION.format(name=name))
    for one in found:
        expect, setting = (text.format(name=name) for text in ADVICE[one["verdict"]])
        told = f"; {setting}." if one["verdict"] == "rows" else f".\n  set {setting}"
        print(f"{language_name(one['language'])}: {expect}{told}")
    return found


def _print_table(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column == "language" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 120).print(table)


CAPTION = (
    "own, {name}: loss in nats per response, for prompts in the language and in {name}. live: own with the {name} "
    "prompt over an untrained connection, at the best share. explained: held-out variance of {name} activations that "
    "is predicted from those of the language, at the best layer; found: how often the right {name} prompt is nearest."
)


def check_base(model: str) -> None:
    """Raise a `UserError` if `model` is the result of training: the question is about the model to start from."""
    from cctuning.model.loading import LORA_CONFIG, RUN_FILE, base_of, read_record
    from cctuning.model.serialization import CONFIG_FILE

    folder = Path(model)
    kinds = {RUN_FILE: "a run", LORA_CONFIG: "a LoRA", CONFIG_FILE: "a model with a trained connection"}
    found = next((kind for file, kind in kinds.items() if (folder / file).is_file()), None)
    if found is None:
        return
    run = read_record(folder) if (folder / RUN_FILE).is_file() else {}
    base, _ = base_of(folder, run)
    told = f"its base, {base}" if base else "its base"
    raise UserError(f"{model}: {found}; diagnose expects the untrained model: use {told}.")


def encoder_of(args: Any) -> Any:
    """The `Encoder` of the untrained model, which renders prompts as training would."""
    from cctuning.data import Encoder
    from cctuning.model.loading import load_tokenizer
    from cctuning.serving.answering import chat_of

    tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Encoder(
        tokenizer,
        max_length=args.max_length,
        max_reference_length=args.max_length,
        chat=chat_of({}, tokenizer) if CHAT[args.chat] is None else args.chat == "yes",
        chat_template_kwargs=args.chat_template_kwargs,
    )


def measure(args: Any) -> list[dict[str, Any]]:
    """The figures of each language, with a key of `ADVICE` as verdict."""
    from datasets import Dataset

    from cctuning.analysis.diagnosis import diagnose, reference_losses
    from cctuning.analysis.observe import language_batches
    from cctuning.data import encode_dataset, load_rows
    from cctuning.model.loading import load_base

    rows, _ = load_rows(args.data, reference_language=args.reference_language)
    foreign, english = choose(rows, args.limit)
    encoder = encoder_of(args)

    def batches(some: list[dict[str, Any]]) -> list[Any]:
        encoded, _ = encode_dataset(Dataset.from_list(some), encoder, bad_rows="skip")
        return language_batches(encoded, encoder.tokenizer.pad_token_id, args.batch_size)

    foreign_batches = batches(foreign)
    model = load_base(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code).eval()
    languages = list(dict.fromkeys(row["lang"] for row in foreign))
    print(f"measuring {len(foreign)} rows in {len(languages)} languages", flush=True)
    losses = reference_losses(model, {lang: batches(english[lang]) for lang in languages if english[lang]})
    found = []
    for one in diagnose(model, foreign_batches, losses):
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
    """Up to `limit` rows per language, evenly spread, and the same questions in the reference language for each.

    A row in the reference language becomes its own reference, so that both sides are processed alike.
    """
    from cctuning.analysis.observe import spread

    every = rows.to_list()
    in_reference = {
        json.dumps(row["prompt"]): {**row, "reference": row["prompt"]} for row in every if row["reference"] is None
    }
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in every:
        if row["reference"] is not None:
            by_language.setdefault(row["lang"] or "und", []).append(row)
    if not by_language:
        raise UserError("data: no row has a reference prompt; `cctuning pair` adds them.")
    chosen, english = [], {}
    for lang, own in by_language.items():
        paired = [row for row in own if json.dumps(row["reference"]) in in_reference] or own
        some = spread(paired, limit)
        chosen += [{**row, "lang": lang} for row in some]
        keys = (json.dumps(row["reference"]) for row in some)
        english[lang] = [in_reference[key] for key in keys if key in in_reference]
    return chosen, english


def verdict(entry: dict[str, Any], rows: int) -> str:
    """The key of `ADVICE` for the figures of one language; `rows`: those behind `explained` and `found`."""
    if math.isnan(entry["explained"]):
        return "rows"
    clear = entry["found"] >= max(FOUND, HITS / rows)
    if rows < HITS / FOUND and not clear:  # with so few rows, either may be chance
        return "rows"
    if entry["explained"] < EXPLAINED and not clear:
        return "apart"
    if math.isnan(entry["reference"]) or math.isnan(entry["own"]):
        return "across"
    return "open" if entry["own"] - entry["reference"] > GAP else "gap"


def diagnose_text(args: Any) -> dict[str, Any]:
    """Measure how well parallel text is aligned already, layer by layer, and print a table with advice."""
    from cctuning.analysis.alignment import of_text
    from cctuning.analysis.observe import spread
    from cctuning.connection import ConnectionConfig
    from cctuning.data.parallel.pairs import load_parallel
    from cctuning.model.loading import load_base

    pairs, report = load_parallel(args.parallel, reference_language=args.reference_language, bad_rows="skip")
    for note in report.notes:
        print(f"note: {note}")
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in pairs.to_list():
        by_language.setdefault(row["lang"], []).append(row)
    chosen = [row for own in by_language.values() for row in spread(own, args.limit)]
    encoder = encoder_of(args)
    model = load_base(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code).eval()
    print(f"measuring {len(chosen)} pairs in {len(by_language)} languages", flush=True)
    found = of_text(model, encoder, chosen)
    name, depth = language_name(args.reference_language), len(found.layers)
    usual = ConnectionConfig().layers_of(depth)
    shown = sorted({round(place * (depth - 1) / (COLUMNS - 1)) for place in range(COLUMNS)})
    title = (
        f"{args.model}: right {name} text found among {found.references}, by layer (chance {1 / found.references:.1%})"
    )
    columns = ["language", "pairs", *map(str, shown), "error"]
    rows = []
    for number, code in enumerate(found.languages):
        by_layer = (f"{float(found.found[number, layer]):.0%}" for layer in shown)
        error = f"{float(found.error[number, usual].mean()):.2f}"
        rows.append([code, str(found.pairs[number]), *by_layer, error])
    _print_table(title, columns, rows)
    spread_share = float(found.spread[usual].mean())
    print(
        f"error: mean over layers {usual[0]} to {usual[-1]}, in units of the spread of {name} texts; 1 is no better\n"
        f"than their mean. In these layers {spread_share:.1%} of the squared norm differs between texts."
    )
    for number, code in enumerate(found.languages):
        best = float(found.found[number, usual].mean())
        expect, setting = next(texts for least, *texts in TEXT_ADVICE if best >= least)
        print(f"{language_name(code)}: {expect.format(name=name)} ({best:.0%} found).\n  set {setting}")
    best_layers = found.best_layers(len(usual))
    print(
        f"Most texts are found in layers {best_layers[0]} to {best_layers[-1]} (set layers); the default of "
        f"connection: align is {usual[0]} to {usual[-1]}."
    )
    values = {key: getattr(found, key) for key in ("layers", "languages", "pairs", "references")}
    return values | {key: getattr(found, key).tolist() for key in ("error", "found", "spread")}


def _plain(value: Any) -> Any:
    """Values for JSON, with null for NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
