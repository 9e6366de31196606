"""The sections on training, its cost, the data, and the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cctuning.languages import language_name
from cctuning.progress import duration
from cctuning.report.charts import lines
from cctuning.report.page import (
    Section,
    block,
    bullets,
    count,
    heading,
    language_names,
    listed,
    number,
    paragraph,
    percent,
    side_by_side,
    table,
)
from cctuning.report.runs import Run

# Title and axis of each chart, and the label of each metric in it; `{error}` is the run's `align_loss`.
CURVES = (
    (
        "Loss",
        "loss per token",
        {
            "lm_loss": "training rows",
            "student_loss": "student pass",
            "fused_loss": "fused pass",
            "eval_loss": "student pass, evaluation rows",
        },
    ),
    ("Alignment", "{error} error", {"align_loss": "alignment error", "identity_loss": "distance from the identity"}),
    ("Gradient norm", "norm", {"grad_norm": "gradient norm"}),
)
LAYERS = 7  # in a chart of the gate, besides the mean
ONE_PASS = {"student_loss": "training rows", "eval_loss": "evaluation rows"}  # labels of a run without a fused pass


def training_section(runs: Sequence[Run]) -> Section:
    """Curves, and how well parallel text was aligned."""
    section = Section("training", "Training")
    short: dict[str, None] = {}
    for title, axis, metrics in CURVES:
        figures = []
        for run in runs:
            labels = metrics if run.connection.connection in ("gated", "adaptive") else metrics | ONE_PASS
            found = {labels[key]: xy for key in metrics if (xy := run.series(key))[0]}
            if not found:
                continue
            if max(len(xs) for xs, _ in found.values()) < 3:
                short[run.name] = None
            text = " ".join(_course(label, ys) for label, (_, ys) in found.items())
            caption = f"{run.name}: {title.lower()}"
            figures.append(lines(run.name, text, caption, found, "step", axis.format(error=run.connection.loss)))
        if figures:
            section.add(heading(title), side_by_side(figures))
            if title == "Alignment":
                section.add(*(part for run in runs for part in aligned(run)))
            if title == "Loss":
                section.add(*(part for run in runs for part in _sampled(run)))
                if by_language := [part for run in runs for part in _eval_losses(run)]:
                    section.add(side_by_side(by_language))
    gates = [_gate(run) for run in runs if len(run.series("decision")[0]) > 1]
    if gates:
        section.add(heading("Gate"), side_by_side(gates))
    if short:
        text = f"{listed([*short])} logged fewer than three times; use smaller logging_steps for curves."
        section.add(paragraph(text, "note"))
    return section


def aligned(run: Run) -> list[Markup]:
    """How pairs were aligned before and after training, where the run measured it."""
    measured = run.record.get("alignment") or {}
    if not measured:
        return []
    names = language_names(measured)
    shown = (("found", percent), ("error", number))
    header = ["language", "pairs", *(f"{key} {when}" for key, _ in shown for when in ("before", "after"))]
    rows = [
        [
            names[code],
            f"{one['pairs']}" if one.get("held_out") else f"{one['pairs']} of the training text",
            *(text(one[when][key]) if when in one else "–" for key, text in shown for when in ("before", "after")),
        ]
        for code, one in measured.items()
    ]
    text = (
        "Pairs are held out of training where the table does not say otherwise. Found: share of texts whose nearest "
        "reference, among those of all measured pairs, is their own. Error: standardized; 1 is no better than the "
        "mean reference. Means over the aligned layers."
    )
    return [table(f"{run.name}: parallel text before and after training", header, rows), paragraph(text, "note")]


def _eval_losses(run: Run) -> list[Markup]:
    """The loss on evaluation rows in each language."""
    keys = sorted({key for line in run.metrics for key in line if key.startswith("eval_loss_")})
    names = language_names(key.removeprefix("eval_loss_") for key in keys)
    losses = [run.series(key)[1] for key in keys]
    rows = [
        [name, *(number(value, 3) for value in (ys[0], min(ys), ys[-1]))]
        for name, ys in zip(names.values(), losses, strict=True)
        if ys
    ]
    header = ["language", "first", "lowest", "last"]
    return [table(f"{run.name}: loss on evaluation rows by language", header, rows)] if rows else []


def _sampled(run: Run) -> list[Markup]:
    """A note if each row takes one of the two passes."""
    config, reference = run.connection, language_name(run.record["reference_language"])
    if config.connection != "gated" or config.paths != "sampled":
        return []
    text = (
        f"In {run.name} each row takes one of the two passes, the fused one with a probability that changes from "
        f"{config.fused_probability_start:g} to {config.fused_probability_end:g}, and rows in {reference} never do. "
        "The two curves are of different rows."
    )
    return [paragraph(text, "note")]


def _gate(run: Run) -> Markup:
    """The mean share of the reference in the connected activations over training, by layer where it was logged."""
    layers = sorted({key for line in run.metrics for key in line if key.startswith("decision_layer_")})
    shown = layers[:: math.ceil(len(layers) / LAYERS)] if layers else []
    named = {"all layers": run.series("decision")}
    named |= {f"layer {int(key.removeprefix('decision_layer_'))}": run.series(key) for key in shown}
    text = _course("share of the reference, mean over layers", named["all layers"][1])
    text += "" if layers else " Train with log_connection: true to see each layer."
    return lines(run.name, text, f"{run.name}: gate over training", named, "step", "share")


def _course(label: str, ys: Sequence[float]) -> str:
    name = f"{label[0].upper()}{label[1:]}"
    if len(ys) == 1:
        return f"{name}: {number(ys[0], 3)}, logged once."
    lowest = min(ys)
    back = f", after {number(lowest, 3)} at its lowest" if lowest < 0.95 * ys[-1] and lowest != ys[0] else ""
    return f"{name}: {number(ys[0], 3)} at the first log, {number(ys[-1], 3)} at the last{back}."


def tokens_a_second(run: Run) -> float | None:
    """Tokens per second of training, with reference prompts and the time before a resumption."""
    tokens, seconds = run.last("num_tokens"), run.last("total_runtime") or run.last("train_runtime")
    return tokens / seconds if tokens is not None and seconds else None


def cost(runs: Sequence[Run]) -> list[Markup]:
    """The cost of each run."""
    rows: list[list[str]] = [
        ["parameters trained: connection", *(f"{run.sizes.connection:,}" for run in runs)],
        ["parameters trained: LoRA", *(f"{run.sizes.lora:,}" for run in runs)],
        [
            "parameters trained: base",
            *(f"{run.sizes.base:,}" if run.options.get("tune", "full") == "full" else "0" for run in runs),
        ],
        ["parameters added at inference", *(added(run) for run in runs)],
        ["steps", *(f"{run.record['steps']:,}" for run in runs)],
        ["time", *(duration(run.record["seconds"]) for run in runs)],
        ["tokens read, with reference prompts", *(number(run.last("num_tokens"), 0) for run in runs)],
        ["tokens per second", *(number(tokens_a_second(run), 0) for run in runs)],
    ]
    memory = {key for run in runs for line in run.metrics for key in line if "_mem_" in key}
    for key in sorted(memory):
        mebibytes = [None if (value := run.last(key)) is None else value / 2**20 for run in runs]
        rows.append(
            [key.replace("_mem_", " memory ").replace("_", " ") + ", MiB", *(number(one, 0) for one in mebibytes)]
        )
    kept = [row for row in rows if any(cell not in ("0", "–") for cell in row[1:])]
    made = [table("Cost of each run", ["figure", *(run.name for run in runs)], kept)]
    if not memory:
        made.append(paragraph("Memory was not recorded; train with skip_memory_metrics: false to record it.", "note"))
    return made


def added(run: Run) -> str:
    """Parameters of the connection at inference; none if it can be merged."""
    if run.connection.mergeable:
        return "0 (can be merged)" if run.sizes.transform else "0"
    return f"{run.sizes.transform if run.connection.connection == 'gated' else run.sizes.connection:,}"


def data_section(runs: Sequence[Run]) -> Section:
    """Rows and parallel text by language."""
    blocks = []
    for run in runs:
        data, parallel = run.record["data"], run.record.get("parallel") or {"pairs": 0, "languages": {}, "sources": []}
        evaluation = run.record.get("eval_data") or {"rows": 0, "languages": {}}
        sources = [*data["sources"], *parallel["sources"]]
        left_out = sum(source.get("skipped", 0) for source in sources) + len(run.record["skipped_in_tokenisation"])
        counts = [f"{count(data['rows'], 'row')} ({data['with_response']:,} with a response)"] if data["rows"] else []
        counts += [f"{count(parallel['pairs'], 'pair')} of parallel text"] if parallel["pairs"] else []
        counts += [count(evaluation["rows"], "evaluation row")] if evaluation["rows"] else []
        text = f"{run.name}: {listed(counts)}"
        text += f"; {count(left_out, 'row')} left out (run.json says why)." if left_out else "."
        columns = {"rows": data, "pairs": parallel, "evaluation rows": evaluation}
        columns = {name: part["languages"] for name, part in columns.items() if part["languages"]}
        names = language_names(dict.fromkeys(code for own in columns.values() for code in own))
        rows = [[name, *(f"{own.get(code, 0):,}" for own in columns.values())] for code, name in names.items()]
        blocks.append(block([paragraph(text), table(f"{run.name}: data by language", ["language", *columns], rows)]))
    return Section("data", "Data", [side_by_side(blocks)])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return listed([_shown(one) for one in value], 12)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)  # as in YAML


def settings_section(runs: Sequence[Run]) -> Section:
    """Options that differ from their defaults, versions, and notes of training."""
    section = Section("settings", "Settings and versions")
    for title, each in (
        ("Options that differ from their defaults", [run.options for run in runs]),
        ("Versions", [run.record["versions"] for run in runs]),
    ):
        rows = [
            [key, *(_shown(one[key]) if key in one else "–" for one in each)]
            for key in dict.fromkeys(name for one in each for name in one)
        ]
        header = ["name", *(run.name for run in runs)]
        section.add(table(title, header, rows, range(len(header))))
    for run in runs:
        if run.record["notes"]:
            section.add(heading(f"Notes of {run.name}"), bullets(str(note) for note in run.record["notes"]))
    return section
