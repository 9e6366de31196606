"""The sections on the connection: its gate, its transform, and the similarity of languages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from cctuning.analysis import GateStatistics, Similarity
from cctuning.languages import language_name
from cctuning.report.formatting import count, language_names, listed, number, percent
from cctuning.report.model_analysis import Findings, ModelAnalysis
from cctuning.report.page import Section, figure, heading, paragraph, side_by_side, table
from cctuning.report.runs import Run
from cctuning.report.svg import Points, Series, heatmap, lines, ranges, scatter

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRONGEST = 5
TOO_FEW = "CKA needs four at least, and many to be stable"


def _names(layers: Sequence[int]) -> list[str]:
    return [f"{layer}" for layer in layers]


def _grid_table(caption: str, layers: Sequence[int], languages: Sequence[str], values: Tensor) -> Markup:
    """A table of `values` (languages, layers), with a row per layer and a column per language."""
    rows = [
        [str(layer), *(number(float(values[g, place]), 3) for g in range(len(languages)))]
        for place, layer in enumerate(layers)
    ]
    return table(caption, ["layer", *(f"{language_name(code)} ({code})" for code in languages)], rows)


def _heat_figure(
    name: str, text: str, caption: str, layers: Sequence[int], languages: Sequence[str], values: Tensor, top: float
) -> Markup:
    """A heat map of `values` (languages, layers) from 0 to `top`, with its table."""
    chart = heatmap(caption, text, _names(layers), languages, values.T.tolist(), 0.0, top)
    return figure(name, text, chart, _grid_table(caption, layers, languages, values))


def _extreme(values: Tensor, languages: Sequence[str], layers: Sequence[int], largest: bool) -> tuple[str, int, float]:
    """Language, layer and value of the largest or smallest entry of `values` (languages, layers), NaN ignored."""
    filled = torch.nan_to_num(values, nan=-torch.inf if largest else torch.inf)
    place = int(filled.argmax() if largest else filled.argmin())
    g, at = divmod(place, values.shape[1])
    return language_names(languages)[languages[g]], layers[at], float(values[g, at])


def _rows_text(found: Findings) -> str:
    """A sentence on the rows that were used."""
    languages = next(iter(found.runs.values())).similarity.languages
    rows = found.rows
    where = f"{count(len(rows.table), 'row')} in {listed([*language_names(languages).values()], 12)}"
    where += f" from {Path(rows.where).name}"
    for name, model in found.runs.items():
        if model.left_out:
            first = model.left_out[0][1]
            where += f"; without {len(model.left_out):,} that {name} could not take (the first: {first})"
    if rows.held_out:
        return f"Measured on {where}, given with --data."
    return (
        f"Measured on {where}, on which the first run was trained: on other rows, effects may be smaller. "
        "Use --data for held-out rows."
    )


def gate_section(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """How much of the reference activations the gate uses, by layer, language and dimension."""
    section = Section("gate", f"Where {language} activations are used").add(paragraph(_rows_text(found), "note"))
    gates = [(run, found.runs[run.name].gate) for run in runs if found.runs[run.name].gate is not None]
    learned = [(run, gate) for run, gate in gates if run.connection.decision == "gate" and gate is not None]
    for run in runs:
        if not run.connected:
            section.add(paragraph(f"{run.name} has no connection."))
        elif run.connection.connection == "gated" and run.connection.decision == "fixed":
            section.add(
                paragraph(
                    f"{run.name} has no gate: the share is fixed at {number(run.connection.decision_value)} for every "
                    "dimension."
                )
            )
    if learned:
        top = max(float(gate.by_layer.max()) for _, gate in learned)
        by_layer = [_gate_by_layer(run, gate, language, top) for run, gate in learned]
        by_dimension = [_gate_by_dimension(run, gate, language) for run, gate in learned]
        section.add(heading("By layer and language"), side_by_side(by_layer))
        section.add(heading("By layer and dimension"), side_by_side(by_dimension))
    figures = []
    for run in runs:
        choice = found.runs[run.name].choice
        if choice is not None:
            layers = list(range(choice.share.shape[1]))
            most = _extreme(choice.share, choice.languages, layers, True)
            text = f"For {most[0]}, layer {most[1]} is chosen for {percent(most[2])} of the rows."
            caption = f"{run.name}: share of rows for which each layer is chosen"
            figures.append(_heat_figure(run.name, text, caption, layers, choice.languages, choice.share, 1.0))
    if figures:
        section.add(heading("Which layer is chosen"), side_by_side(figures))
    over_time = [made for run, _ in learned if (made := _over_training(run, language))]
    if over_time:
        section.add(heading("Over training"), side_by_side(over_time))
    return section


def _gate_by_layer(run: Run, gate: GateStatistics, language: str, top: float) -> Markup:
    share = gate.by_layer
    most = _extreme(share, gate.languages, gate.layers, True)
    least = _extreme(share, gate.languages, gate.layers, False)
    start = float(torch.sigmoid(torch.tensor(run.connection.decision_bias)))
    text = (
        f"The gate is most open for {most[0]} in layer {most[1]}, where {percent(most[2])} of the activation is "
        f"{language}, and least for {least[0]} in layer {least[1]} ({percent(least[2])}); it started at "
        f"{percent(start)} everywhere."
    )
    caption = f"{run.name}: mean share of {language} by layer and language"
    return _heat_figure(run.name, text, caption, gate.layers, gate.languages, share, top)


def _gate_by_dimension(run: Run, gate: GateStatistics, language: str) -> Markup:
    quantiles = gate.quantiles(QUANTILES).tolist()
    shares, dimensions = gate.strongest(STRONGEST)
    place = int(shares[:, 0].argmax())
    text = (
        f"The largest share is that of dimension {int(dimensions[place, 0])} in layer {gate.layers[place]}, "
        f"{percent(float(shares[place, 0]))}; half of the dimensions of that layer lie between "
        f"{percent(quantiles[place][1])} and {percent(quantiles[place][3])}. The standard deviation of a dimension "
        f"over prompts is {number(float(gate.deviation.mean()))}."
    )
    caption = f"{run.name}: shares of the dimensions, by layer"
    names = _names(gate.layers)
    chart = ranges(caption, text, list(zip(names, quantiles, strict=True)), f"mean share of {language}")
    rows = []
    for name, values, top, which in zip(names, quantiles, shares.tolist(), dimensions.tolist(), strict=True):
        largest = ", ".join(f"{dimension} ({number(share)})" for dimension, share in zip(which, top, strict=True))
        rows.append([name, *(number(value, 3) for value in values), largest])
    header = ["layer", "5 %", "25 %", "median", "75 %", "95 %", "largest dimensions (share)"]
    return figure(run.name, text, chart, table(caption, header, rows, (0, 6)))


def _over_training(run: Run, language: str) -> Markup | None:
    """The mean share of the gate over training steps, by layer if that was logged (`log_connection`)."""
    keys = sorted({key for line in run.metrics for key in line if key.startswith("decision_layer_")})
    named = [(f"layer {int(key.rsplit('_', 1)[1])}", run.series(key)) for key in keys]
    hint = "" if named else " Train with log_connection: true to log it by layer."
    named = [(name, found) for name, found in named or [("all layers", run.series("decision"))] if len(found[0]) > 1]
    if not named:
        return None
    changes = [(name, ys[0], ys[-1]) for name, (_, ys) in named]
    name, first, last = max(changes, key=lambda one: abs(one[2] - one[1]))
    which = f"It changed most in {name}, " if len(changes) > 1 else "The mean over layers changed "
    text = f"{which}from {percent(first)} at the first log to {percent(last)} at the last.{hint}"
    shown = named if len(named) <= 8 else [named[place * (len(named) - 1) // 7] for place in range(8)]
    if len(shown) < len(named):
        text += f" {len(shown)} of {len(named)} layers are shown."
    title = f"{run.name}: mean share of {language} over training"
    chart = lines(title, text, [Series(n, *xy, style=i) for i, (n, xy) in enumerate(shown)], "step", "share")
    return figure(run.name, text, chart, series_table(title, named))


def series_table(caption: str, named: Sequence[tuple[str, tuple[Sequence[float], Sequence[float]]]]) -> Markup:
    """Steps as rows and series as columns; at most 40 steps."""
    steps = sorted({x for _, (xs, _) in named for x in xs})
    if len(steps) > 40:
        kept = {steps[place * (len(steps) - 1) // 39] for place in range(40)}
        steps = [step for step in steps if step in kept]
        caption += f" ({len(steps)} of the logged steps)"
    columns = [dict(zip(xs, ys, strict=True)) for _, (xs, ys) in named]
    rows = [[f"{step:g}", *(number(column.get(step), 4) for column in columns)] for step in steps]
    return table(caption, ["step", *(name for name, _ in named)], rows)


def transform_section(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """How far each transform is from the identity, and how much of the gap it closes."""
    section = Section("transform", "What the transform does")
    shapes: list[Markup] = []
    closed: list[Markup] = []
    for run in runs:
        model = found.runs[run.name]
        if run.connected and run.connection.connection == "gated" and run.connection.transform == "none":
            section.add(paragraph(f"{run.name} has no transform."))
        elif run.connected:
            if model.shape is not None:
                shapes += _shape(run, model)
            closed.append(_closed(run, model))
        else:
            section.add(paragraph(f"{run.name} has no connection and no transform."))
    if shapes:
        section.add(heading("Distance from the identity, and effective rank"), side_by_side(shapes))
    if closed:
        section.add(heading("Share of the gap that it closes, by layer and language"), side_by_side(closed))
    return section


def _shape(run: Run, model: ModelAnalysis) -> list[Markup]:
    """Two figures: distance from the identity, effective rank."""
    shape = model.shape
    assert shape is not None
    furthest = int(shape.distance.argmax())
    distance, rank = shape.distance.tolist(), shape.effective_rank.tolist()
    which = "The one matrix" if len(shape.layers) == 1 else f"The matrix of layer {shape.layers[furthest]}"
    most = "" if len(shape.layers) == 1 else ", the largest distance"
    far = f"{which} is {percent(distance[furthest])} of the identity's norm away from it{most}."
    spread = f"{number(min(rank), 1)} to {number(max(rank), 1)}" if len(rank) > 1 else number(rank[0], 1)
    wide = f"Its changes have an effective rank of {spread}, of {shape.rank} possible."
    title = f"{run.name}: distance of each matrix from the identity"
    rows = [
        [str(layer), number(one, 4), number(other, 2)]
        for layer, one, other in zip(shape.layers, distance, rank, strict=True)
    ]
    header = ["layer", "||W − I|| / ||I||", f"effective rank (of {shape.rank})"]
    xs = [float(layer) for layer in shape.layers]
    first = lines(title, far, [Series("distance", xs, distance)], "layer", "||W − I|| / ||I||")
    ranked = f"{run.name}: effective rank of what each matrix changes"
    second = lines(ranked, wide, [Series("effective rank", xs, rank)], "layer", "effective rank")
    return [
        figure(run.name, far, first, table(title, header, rows)),
        figure(run.name, wide, second, table(ranked, header, rows)),
    ]


def _closed(run: Run, model: ModelAnalysis) -> Markup:
    errors = model.errors
    assert errors is not None
    closed = errors.closed
    by_language = 1 - errors.error.sum(dim=1) / errors.identity.sum(dim=1).clamp(min=1e-30)
    worst, best = int(by_language.argmin()), int(by_language.argmax())
    names = list(language_names(errors.languages).values())
    behind = [name for name, value in zip(names, by_language, strict=True) if value <= 0]
    missed = f" For {listed(behind)} it is no better than the identity." if behind else ""
    text = (
        f"Over all layers the transform closes between {percent(float(by_language[worst]))} ({names[worst]}) and "
        f"{percent(float(by_language[best]))} ({names[best]}) of the gap to its target.{missed}"
    )
    title = f"{run.name}: share of the gap closed by the transform"
    top = max(0.05, float(torch.nan_to_num(closed).abs().max()))
    chart = heatmap(title, text, _names(errors.layers), errors.languages, closed.T.tolist(), 0.0, top)
    tables = [
        _grid_table(f"{run.name}: {what}", errors.layers, errors.languages, values)
        for what, values in (
            ("share of the gap closed, 1 − error / error of the identity", closed),
            ("relative error of the transform, ||hW − f||² / ||f||²", errors.error),
            ("relative error of the identity, ||h − f||² / ||f||²", errors.identity),
            ("how far the transform moves an activation, ||hW − h||² / ||h||²", errors.moved),
        )
    ]
    return figure(run.name, text, chart, Markup("").join(tables))


def similarity_section(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """How similar the activations of a prompt and of its reference prompt are."""
    section = Section("similarity", "Similarity of languages")
    section.add(
        paragraph(
            f"Similarity of the FFN activations of a prompt and of its {language} reference prompt, at their last "
            "tokens. CKA compares the geometry of two languages: 1 is the same, 0 unrelated (unbiased estimate). "
            "The cosine is of a prompt with its own reference prompt; thin lines, with those of other prompts.",
        )
    )
    bases: dict[str, list[Run]] = {}
    for run in runs:
        bases.setdefault(run.base, []).append(run)
    for path, members in bases.items():
        base = found.bases[path]
        named = [("base", base), *((run.name, found.runs[run.name]) for run in members)]
        languages = sorted(set.intersection(*(set(model.similarity.languages) for _, model in named)))
        alike = [(name, model.similarity.of(languages)) for name, model in named]
        pictures = [_by_layer(alike, "cka", "unbiased linear CKA"), _by_layer(alike, "cosine", "cosine")]
        where = f", from {Path(path).name}" if len(bases) > 1 else ""
        section.add(heading(f"By layer{where}"), side_by_side(pictures))
        section.add(
            heading(f"Change in CKA against the base{where}"),
            side_by_side([_change(name, alike[0][1], tuned, language) for name, tuned in alike[1:]]),
        )
        planes = [_plane(name, model, language) for name, model in named]
        section.add(heading(f"Prompts and reference prompts on a plane{where}"), side_by_side(planes))
    return section


def _by_layer(named: Sequence[tuple[str, Similarity]], kind: str, label: str) -> Markup:
    """One of the two measures by layer, for the same languages."""
    series, rows, means, gaps = [], [], [], []
    for style, (name, found) in enumerate(named):
        values = getattr(found, kind)
        mean = values.nanmean(dim=0)
        means.append(float(mean.mean()))
        gaps.append(f"{name} {number(means[-1] - float(found.unrelated.nanmean()))}")
        xs = [float(layer) for layer in found.layers]
        series.append(Series(name, xs, mean.tolist(), style=style))
        rows += [
            [name, str(layer), number(float(mean[at]), 3), *(number(float(value), 3) for value in values[:, at])]
            for at, layer in enumerate(found.layers)
        ]
        if kind == "cosine":
            unrelated = found.unrelated.nanmean(dim=0)
            series.append(Series(f"{name}, unrelated", xs, unrelated.tolist(), style=style, quiet=True))
    told = [f"{name} {number(mean)}" for (name, _), mean in zip(named, means, strict=True)]
    text = f"Mean over layers and languages: {told[0]}, {listed(told[1:])}."
    if not math.isfinite(means[0]):
        text = f"Not computed: too few different rows per language ({TOO_FEW})."
    if kind == "cosine":
        text += f" Above that of unrelated pairs by: {', '.join(gaps)}."
    title = f"Mean {label} by layer"
    header = ["model", "layer", "mean", *language_names(named[0][1].languages).values()]
    return figure("", text, lines(title, text, series, "layer", label), table(title, header, rows))


def _change(run: str, base: Similarity, tuned: Similarity, language: str) -> Markup:
    """Change in CKA, for the same languages."""
    change, layers, languages = tuned.cka - base.cka, tuned.layers, tuned.languages
    mean = change.nanmean(dim=1)
    most = int(torch.nan_to_num(mean, nan=-torch.inf).argmax())
    least = int(torch.nan_to_num(mean, nan=torch.inf).argmin())
    gained, names = float(mean[most]), list(language_names(languages).values())
    if not math.isfinite(gained):
        text = f"Not computed: too few different rows per language ({TOO_FEW})."
    elif gained > 0:
        text = (
            f"The similarity to {language} increased most for {names[most]} ({number(gained)}, mean over layers) and "
            f"least for {names[least]} ({number(float(mean[least]))})."
        )
    else:
        best = f"the largest change is {names[most]} with {number(gained)}, mean over layers"
        text = f"The similarity to {language} increased for no language: {best}."
    title = f"{run}: change in CKA by layer and language"
    top = max(0.05, float(torch.nan_to_num(change).abs().max()))
    return _heat_figure(run, text, title, layers, languages, change, top)


def _plane(name: str, model: ModelAnalysis, language: str) -> Markup:
    plane, names = model.plane, language_names(model.plane.points)
    groups = [
        Points(names[code], points, style + 1, plane.links[code])
        for style, (code, points) in enumerate(plane.points.items())
    ]
    groups.append(Points(language, plane.references, 0))
    own = torch.tensor([point for points in plane.points.values() for point in points])
    theirs = torch.tensor([point for points in plane.links.values() for point in points])
    spread = float((theirs - theirs.mean(dim=0)).norm(dim=1).mean()) or 1.0
    apart = float((own - theirs).norm(dim=1).mean()) / spread
    text = (
        f"In layer {plane.layer}, the mean distance of a prompt to its {language} reference prompt is {number(apart)} "
        f"times that of the {language} prompts to their mean. The plane shows {percent(sum(plane.explained))} of the "
        "variance."
    )
    title = f"{name}: {len(plane.references)} reference prompts and their prompts in layer {plane.layer}"
    labels = [f"component {place + 1} ({percent(share)})" for place, share in enumerate(plane.explained)]
    rows = [
        [names[code], number(x), number(y), number(a), number(b)]
        for code, points in plane.points.items()
        for (x, y), (a, b) in zip(points, plane.links[code], strict=True)
    ]
    header = ["language", "x", "y", f"x of its {language} prompt", "y"]
    return figure(name, text, scatter(title, text, groups, *labels), table(title, header, rows))
