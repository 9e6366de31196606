"""`cctuning diagnose MODEL --parallel FILE …`: measure how far parallel text is aligned in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cctuning.cli.options import Plain, add_model_options, chosen
from cctuning.errors import UserError
from cctuning.files import check_new_file, write_json
from cctuning.languages import canonical, language_name

COLUMNS = 9  # layers in the table, from the first to the last
# Least share of texts found among some 64 to 256 references; what to expect, and what to set.
ADVICE = (
    (0.8, "close to {name} already: expect little from alignment", "connection: none (plain fine-tuning)"),
    (0.2, "partly aligned: alignment can start from this", "connection: align"),
    (
        0.0,
        "far from {name}: the model hardly knows the language, or the text is not parallel",
        "connection: align if the text is parallel; more text, or a model that knows the language, may help more",
    ),
)
FEW_PAIRS = 20  # of fewer, or among fewer references, a fifth is found by chance too often
TOO_FEW = ("too few pairs to tell", "connection: align if the language is far; give diagnose more pairs")


def main(argv: list[str]) -> None:
    """Measure, print a table with advice, and save the figures if asked."""
    parser = Plain("cctuning diagnose", description="Measure how well parallel text is aligned in a model.")
    parser.add_argument(
        "model", metavar="MODEL", help="a model, usually the one to train: a directory, a hub name or a run"
    )
    parser.add_argument(
        "--parallel", nargs="+", required=True, metavar="FILE", help="parallel text, or rows with reference prompts"
    )
    parser.add_argument("--limit", type=int, default=256, help="pairs per language (default: 256)")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens; pairs with a longer text are left out")
    parser.add_argument("--reference_language", default="en", help="language that the others are compared with")
    parser.add_argument("--output", help="new JSON file for the figures")
    add_model_options(parser)
    args = parser.parse_args(argv)
    for name in ("limit", "max_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1, got {getattr(args, name)}.")
    if args.output:
        check_new_file(Path(args.output))
    args.reference_language = canonical(args.reference_language, "--reference_language")
    found = diagnose(args)
    if args.output:
        write_json(Path(args.output), found)


def diagnose(args: Any) -> dict[str, Any]:
    """Measure the pairs layer by layer, and print a table with advice; returns the figures."""
    from rich.console import Console
    from rich.table import Table

    from cctuning.connection import ConnectionConfig
    from cctuning.data.parallel.pairs import load_parallel
    from cctuning.model.loading import load, to_accelerator
    from cctuning.model.sites import unwrap
    from cctuning.serving.answering import chat_notes, encoder_of
    from cctuning.training.metrics import of_text

    pairs, report = load_parallel(args.parallel, reference_language=args.reference_language, bad_rows="skip")
    for note in report.notes:
        print(f"note: {note}")
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in pairs.to_list():
        by_language.setdefault(row["lang"], []).append(row)
    sample = []
    for own in by_language.values():
        kept = min(args.limit, len(own))
        sample += [own[place * len(own) // kept] for place in range(kept)]  # evenly spread
    loaded = to_accelerator(load(args.model, **chosen(args, "dtype trust_remote_code")))
    if loaded.connected is not None:
        raise UserError(f"{args.model}: has a trained connection; name a model without one, such as its base.")
    if loaded.tokenizer.pad_token_id is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    positions = getattr(unwrap(loaded.model).config.get_text_config(), "max_position_embeddings", None)
    most = min(args.max_length, positions or args.max_length)
    limits = {"max_length": most, "max_reference_length": most}
    encoder = encoder_of(loaded.tokenizer, loaded.run, **chosen(args, "chat chat_template_kwargs"), **limits)
    for note in chat_notes(loaded.run, encoder):
        print(f"note: {note}")
    print(f"measuring {len(sample)} pairs in {len(by_language)} languages", flush=True)
    found = of_text(loaded.model, encoder, sample)
    if left_out := len(sample) - sum(found.pairs):
        print(
            f"note: {left_out} pairs are left out: longer than {most} tokens (--max_length, or the model), or empty."
        )
    name, depth = language_name(args.reference_language), len(found.layers)
    usual = ConnectionConfig().layers_of(depth)
    shown = sorted({round(place * (depth - 1) / (COLUMNS - 1)) for place in range(COLUMNS)})
    table = Table(
        title=f"{args.model}: right {name} text found among {found.references}, by layer "
        f"(chance {1 / found.references:.1%})"
    )
    for column in ["language", "pairs", *map(str, shown), "error"]:
        table.add_column(column, justify="left" if column == "language" else "right")
    for number, code in enumerate(found.languages):
        by_layer = (f"{float(found.found[number, layer]):.0%}" for layer in shown)
        error = f"{float(found.error[number, usual].mean()):.2f}"
        table.add_row(code, str(found.pairs[number]), *by_layer, error)
    Console(width=None if Console().is_terminal else 120).print(table)
    spread_share = float(found.spread[usual].mean())
    print(
        f"error: mean over layers {usual[0]} to {usual[-1]}, in units of the spread of {name} texts; 1 is no better\n"
        f"than their mean. In these layers {spread_share:.1%} of the squared norm differs between texts."
    )
    for number, code in enumerate(found.languages):
        best, pairs = float(found.found[number, usual].mean()), found.pairs[number]
        advice = [(0.0, *TOO_FEW)] if min(pairs, found.references) < FEW_PAIRS else ADVICE
        expect, setting = next(texts for least, *texts in advice if best >= least)
        print(f"{language_name(code)}: {expect.format(name=name)} ({best:.0%} of {pairs} found).\n  set {setting}")
    best_layers = found.best_layers(len(usual))
    print(
        f"Most texts are found in layers {best_layers[0]} to {best_layers[-1]} (set layers); the default of "
        f"connection: align is {usual[0]} to {usual[-1]}."
    )
    values = {key: getattr(found, key) for key in ("layers", "languages", "pairs", "references")}
    return values | {key: getattr(found, key).tolist() for key in ("error", "found", "spread")}
