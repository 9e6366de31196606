"""The sections on the connection: its gate, its transform, and the similarity of languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from cctuning.analysis import GateStatistics, Similarity, TransformErrors, TransformShape
from cctuning.report.charts import heatmap, lines, scatter
from cctuning.report.formatting import count, language_names, listed, number, percent
from cctuning.report.model_analysis import Findings, ModelAnalysis
from cctuning.report.page import Section, heading, paragraph, side_by_side, table
from cctuning.report.runs import Run

QUANTILES = {"median": 0.5, "5 %": 0.05, "25 %": 0.25, "75 %": 0.75, "95 %": 0.95}
TOO_FEW = "Not computed: too few different rows per language (CKA needs four at least, and many to be stable)."


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
    learned: dict[str, tuple[Run, GateStatistics]] = {}
    choices = []
    for run in runs:
        gate, choice = found.runs[run.name].gate, found.runs[run.name].choice
        fixed = run.connection.connection == "gated" and run.connection.decision == "fixed"
        if not run.connected:
            section.add(paragraph(f"{run.name} has no connection."))
        elif fixed:
            share = number(run.connection.decision_value)
            section.add(paragraph(f"{run.name} has no gate: the share is fixed at {share} for every dimension."))
        elif gate is not None and run.connection.decision == "gate":
            learned[run.name] = run, gate
        if choice is not None:
            layers = list(range(choice.share.shape[1]))
            most = _extreme(choice.share, choice.languages, layers, True)
            text = f"For {most[0]}, layer {most[1]} is chosen for {percent(most[2])} of the rows."
            title = f"{run.name}: share of rows for which each layer is chosen"
            choices.append(heatmap(run.name, text, title, layers, language_names(choice.languages), choice.share, 1.0))
    if learned:
        top = max(float(gate.by_layer.max()) for _, gate in learned.values())
        by_layer = [_gate_by_layer(run, gate, language, top) for run, gate in learned.values()]
        by_dimension = [_gate_by_dimension(run, gate, language) for run, gate in learned.values()]
        section.add(heading("By layer and language"), side_by_side(by_layer))
        section.add(heading("By layer and dimension"), side_by_side(by_dimension))
    if choices:
        section.add(heading("Which layer is chosen"), side_by_side(choices))
    over_time = [made for run, _ in learned.values() if (made := _over_training(run, language))]
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
    title = f"{run.name}: mean share of {language} by layer and language"
    return heatmap(run.name, text, title, gate.layers, language_names(gate.languages), share, top)


def _gate_by_dimension(run: Run, gate: GateStatistics, language: str) -> Markup:
    quantiles = dict(zip(QUANTILES, gate.quantiles([*QUANTILES.values()]).T.tolist(), strict=True))
    shares, dimensions = gate.strongest(1)
    place = int(shares[:, 0].argmax())
    text = (
        f"The largest share is that of dimension {int(dimensions[place, 0])} in layer {gate.layers[place]}, "
        f"{percent(float(shares[place, 0]))}; half of the dimensions of that layer lie between "
        f"{percent(quantiles['25 %'][place])} and {percent(quantiles['75 %'][place])}. The standard deviation of a "
        f"dimension over prompts is {number(float(gate.deviation.mean()))}. "
        "Thick line: median over dimensions; thin lines: 5, 25, 75 and 95 %."
    )
    title = f"{run.name}: quantiles of the shares of the dimensions, by layer"
    series = {name: (gate.layers, values) for name, values in quantiles.items()}
    return lines(run.name, text, title, series, "layer", f"mean share of {language}", quiet=[*QUANTILES][1:])


def _over_training(run: Run, language: str) -> Markup | None:
    """The mean share of the gate over training steps, by layer if that was logged (`log_connection`)."""
    keys = sorted({key for line in run.metrics for key in line if key.startswith("decision_layer_")})
    named = {f"layer {int(key.rsplit('_', 1)[1])}": run.series(key) for key in keys}
    hint = "" if named else " Train with log_connection: true to log it by layer."
    named = {name: xy for name, xy in (named or {"all layers": run.series("decision")}).items() if len(xy[0]) > 1}
    if not named:
        return None
    name, (_, ys) = max(named.items(), key=lambda one: abs(one[1][1][-1] - one[1][1][0]))
    which = f"It changed most in {name}, " if len(named) > 1 else "The mean over layers changed "
    text = f"{which}from {percent(ys[0])} at the first log to {percent(ys[-1])} at the last.{hint}"
    shown = [*named][:: math.ceil(len(named) / 8)]
    if len(shown) < len(named):
        text += f" {len(shown)} of {len(named)} layers are shown."
    title = f"{run.name}: mean share of {language} over training"
    return lines(run.name, text, title, {name: named[name] for name in shown}, "step", "share")


def transform_section(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """How far each transform is from the identity, and how much of the gap it closes."""
    section = Section("transform", "What the transform does")
    shapes: list[Markup] = []
    closed: list[Markup] = []
    for run in runs:
        model = found.runs[run.name]
        if not run.connected:
            section.add(paragraph(f"{run.name} has no connection and no transform."))
        elif run.connection.connection == "gated" and run.connection.transform == "none":
            section.add(paragraph(f"{run.name} has no transform."))
        else:
            if model.shape is not None:
                shapes += _shape(run, model.shape)
            if model.errors is not None:
                closed.append(_closed(run, model.errors))
    if shapes:
        section.add(heading("Distance from the identity, and effective rank"), side_by_side(shapes))
    if closed:
        section.add(heading("Share of the gap that it closes, by layer and language"), side_by_side(closed))
    return section


def _shape(run: Run, shape: TransformShape) -> list[Markup]:
    """Two figures: distance from the identity, effective rank."""
    furthest = int(shape.distance.argmax())
    distance, rank = shape.distance.tolist(), shape.effective_rank.tolist()
    one = len(shape.layers) == 1
    which = "The one matrix" if one else f"The matrix of layer {shape.layers[furthest]}"
    most = "" if one else ", the largest distance"
    far = f"{which} is {percent(distance[furthest])} of the identity's norm away from it{most}."
    spread = number(rank[0], 1) if one else f"{number(min(rank), 1)} to {number(max(rank), 1)}"
    wide = f"Its changes have an effective rank of {spread}, of {shape.rank} possible."
    title = f"{run.name}: distance of each matrix from the identity"
    ranked = f"{run.name}: effective rank of what each matrix changes"
    label = "||W − I|| / ||I||"
    return [
        lines(run.name, far, title, {label: (shape.layers, distance)}, "layer", label),
        lines(run.name, wide, ranked, {"effective rank": (shape.layers, rank)}, "layer", "effective rank"),
    ]


def _closed(run: Run, errors: TransformErrors) -> Markup:
    by_language = 1 - errors.error.sum(dim=1) / errors.identity.sum(dim=1).clamp(min=1e-30)
    worst, best = int(by_language.argmin()), int(by_language.argmax())
    names = language_names(errors.languages)
    named = [*names.values()]
    behind = [name for name, value in zip(named, by_language, strict=True) if value <= 0]
    missed = f" For {listed(behind)} it is no better than the identity." if behind else ""
    text = (
        f"Over all layers the transform closes between {percent(float(by_language[worst]))} ({named[worst]}) and "
        f"{percent(float(by_language[best]))} ({named[best]}) of the gap to its target.{missed}"
    )
    title = f"{run.name}: share of the gap closed by the transform, 1 − error / error of the identity"
    return heatmap(run.name, text, title, errors.layers, names, errors.closed, _largest(errors.closed))


def _largest(values: Tensor) -> float:
    return max(0.05, float(torch.nan_to_num(values).abs().max()))


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
        named = {"base": found.bases[path], **{run.name: found.runs[run.name] for run in members}}
        languages = sorted(set.intersection(*(set(model.similarity.languages) for model in named.values())))
        alike = {name: model.similarity.of(languages) for name, model in named.items()}
        where = f", from {Path(path).name}" if len(bases) > 1 else ""
        pictures = [_by_layer(alike, "CKA", lambda one: one.cka), _by_layer(alike, "cosine", lambda one: one.cosine)]
        section.add(heading(f"By layer{where}"), side_by_side(pictures))
        changes = [_change(run.name, alike["base"], alike[run.name], language) for run in members]
        section.add(heading(f"Change in CKA against the base{where}"), side_by_side(changes))
        planes = [_plane(name, model, language) for name, model in named.items()]
        section.add(heading(f"Prompts and reference prompts on a plane{where}"), side_by_side(planes))
    return section


def _by_layer(models: dict[str, Similarity], kind: str, of: Callable[[Similarity], Tensor]) -> Markup:
    """One of the two measures by layer, for the same languages."""
    series, rows, means, gaps, quiet = {}, [], [], [], []
    for name, found in models.items():
        values = of(found)
        mean = values.nanmean(dim=0)
        means.append(float(mean.mean()))
        series[name] = found.layers, mean.tolist()
        if kind == "cosine":
            gaps.append(f"{name} {number(means[-1] - float(found.unrelated.nanmean()))}")
            quiet.append(f"{name}, unrelated")
            series[quiet[-1]] = found.layers, found.unrelated.nanmean(dim=0).tolist()
        rows += [
            [name, str(layer), number(float(mean[at]), 3), *(number(float(value), 3) for value in values[:, at])]
            for at, layer in enumerate(found.layers)
        ]
    told = [f"{name} {number(mean)}" for name, mean in zip(models, means, strict=True)]
    text = f"Mean over layers and languages: {told[0]}, {listed(told[1:])}." if math.isfinite(means[0]) else TOO_FEW
    if gaps:
        text += f" Above that of unrelated pairs by: {', '.join(gaps)}."
    title = f"Mean {kind} by layer"
    header = ["model", "layer", "mean", *language_names(next(iter(models.values())).languages).values()]
    return lines("", text, title, series, "layer", kind, quiet, table(title, header, rows))


def _change(run: str, base: Similarity, tuned: Similarity, language: str) -> Markup:
    """Change in CKA, for the same languages."""
    change, names = tuned.cka - base.cka, language_names(tuned.languages)
    mean = change.nanmean(dim=1)
    most = int(torch.nan_to_num(mean, nan=-torch.inf).argmax())
    least = int(torch.nan_to_num(mean, nan=torch.inf).argmin())
    gained, named = float(mean[most]), [*names.values()]
    if not math.isfinite(gained):
        text = TOO_FEW
    elif gained > 0:
        text = (
            f"The similarity to {language} increased most for {named[most]} ({number(gained)}, mean over layers) and "
            f"least for {named[least]} ({number(float(mean[least]))})."
        )
    else:
        best = f"the largest change is {named[most]} with {number(gained)}, mean over layers"
        text = f"The similarity to {language} increased for no language: {best}."
    title = f"{run}: change in CKA by layer and language"
    return heatmap(run, text, title, tuned.layers, names, change, _largest(change))


def _plane(name: str, model: ModelAnalysis, language: str) -> Markup:
    plane, names = model.plane, language_names(model.plane.points)
    pairs = [pair for code in names for pair in zip(plane.points[code], plane.references[code], strict=True)]
    own, theirs = torch.tensor(pairs).unbind(dim=1)
    spread = float((theirs - theirs.mean(dim=0)).norm(dim=1).mean()) or 1.0
    apart = float((own - theirs).norm(dim=1).mean()) / spread
    text = (
        f"In layer {plane.layer}, the mean distance of a prompt to its {language} reference prompt is {number(apart)} "
        f"times that of the {language} prompts to their mean. The plane shows {percent(sum(plane.explained))} of the "
        "variance."
    )
    once = [*dict.fromkeys(reference for _, reference in pairs)]
    title = f"{name}: {len(once)} reference prompts and their prompts in layer {plane.layer}"
    labels = [f"component {place + 1} ({percent(share)})" for place, share in enumerate(plane.explained)]
    groups = {language: once, **{names[code]: points for code, points in plane.points.items()}}
    return scatter(name, text, title, groups, pairs, labels[0], labels[1])
