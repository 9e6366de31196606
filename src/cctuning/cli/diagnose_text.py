"""`cctuning diagnose MODEL --parallel FILE …`: how well each language is aligned already, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cctuning.cli.diagnose import encoder_of
from cctuning.languages import language_name

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


def diagnose_text(args: Any) -> None:
    """Measure, print a table with advice, and save the figures if asked."""
    from rich.console import Console
    from rich.table import Table

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
    table = Table(title=title)
    for column in ("language", "pairs", *map(str, shown), "error"):
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
        best = float(found.found[number, usual].mean())
        expect, setting = next(texts for least, *texts in ADVICE if best >= least)
        print(f"{language_name(code)}: {expect.format(name=name)} ({best:.0%} found).\n  set {setting}")
    best_layers = found.best_layers(len(usual))
    print(
        f"Most texts are found in layers {best_layers[0]} to {best_layers[-1]} (set layers); the default of "
        f"connection: align is {usual[0]} to {usual[-1]}."
    )
    if args.output:
        values = {key: getattr(found, key) for key in ("layers", "languages", "pairs", "references")}
        values |= {key: getattr(found, key).tolist() for key in ("error", "found", "spread")}
        Path(args.output).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
