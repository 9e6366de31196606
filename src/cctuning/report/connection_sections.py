"""The sections on the connection: where it borrows, what its transform does, whether languages meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cctuning.analysis import Meeting
from cctuning.languages import language_name
from cctuning.report.formatting import count, language_names, listed, number, percent
from cctuning.report.model_analysis import Findings, Inside
from cctuning.report.page import Section, figure, heading, paragraph, side_by_side, table
from cctuning.report.runs import Run
from cctuning.report.svg import Points, Series, heatmap, lines, ranges, scatter

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRONGEST = 5
TOO_FEW = "CKA takes four at least, and many to be steady"


def _names(layers: Sequence[int]) -> list[str]:
    return [f"{layer}" for layer in layers]


def _grid_table(caption: str, corner: str, layers: Sequence[int], languages: Sequence[str], values: Tensor) -> str:
    """A row a layer, a column a language, of `values` (G, L)."""
    rows = [
        [str(layer), *(number(float(values[g, place]), 3) for g in range(len(languages)))]
        for place, layer in enumerate(layers)
    ]
    return table(caption, [corner, *(f"{language_name(code)} ({code})" for code in languages)], rows)


def _extreme(values: Tensor, languages: Sequence[str], layers: Sequence[int], largest: bool) -> tuple[str, int, float]:
    """Language, layer and value of the largest (or smallest) entry of (G, L); NaN never."""
    filled = torch.nan_to_num(values, nan=-torch.inf if largest else torch.inf)
    place = int(filled.argmax() if largest else filled.argmin())
    g, at = divmod(place, values.shape[1])
    return language_names(languages)[languages[g]], layers[at], float(values[g, at])


def said_of_rows(found: Findings) -> str:
    """Which rows the figures are of."""
    languages = next(iter(found.runs.values())).meeting.languages
    rows = found.rows
    where = f"{count(len(rows.table), 'row')} in {listed([*language_names(languages).values()], 12)}"
    where += f" from {Path(rows.where).name}"
    for name, inside in found.runs.items():
        if inside.left_out:
            first = inside.left_out[0][1]
            where += f"; without {len(inside.left_out):,} that {name} could not take (the first: {first})"
    if rows.held_out:
        return f"Measured on {where}. They were given with --data."
    return (
        f"Measured on {where}. They are rows that the first run was trained on: what it does on others may be less. "
        "Give rows it has not seen with --data."
    )


def borrowing(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """Where the reference language is borrowed."""
    section = Section("borrowed", f"Where {language} is borrowed").add(paragraph(said_of_rows(found), "note"))
    gates = [(run, inside.gate) for run in runs if (inside := found.runs[run.name]).gate is not None]
    learned = [(run, gate) for run, gate in gates if run.connection.decision == "gate" and gate is not None]
    for run in runs:
        if not run.connected:
            section.add(paragraph(f"{run.name} has no connection: it borrows nothing."))
        elif run.connection.connection == "gated" and run.connection.decision == "fixed":
            section.add(
                paragraph(
                    f"{run.name} has no gate: every dimension takes the same share, "
                    f"{number(run.connection.decision_value)}, by its settings."
                )
            )
    if learned:
        top = max(float(gate.by_layer.max()) for _, gate in learned)
        by_layer, by_dimension = [], []
        for run, gate in learned:
            share, where = gate.by_layer, _names(gate.layers)
            most = _extreme(share, gate.languages, gate.layers, True)
            least = _extreme(share, gate.languages, gate.layers, False)
            start = float(torch.sigmoid(torch.tensor(run.connection.decision_bias)))
            says = (
                f"The gate opens widest for {most[0]} in layer {most[1]}, where {percent(most[2])} of {language} is "
                f"taken, and least for {least[0]} in layer {least[1]} ({percent(least[2])}); it started at "
                f"{percent(start)} everywhere."
            )
            caption = f"{run.name}: mean share of {language} by layer and language"
            chart = heatmap(caption, says, where, gate.languages, share.T.tolist(), 0.0, top)
            by_layer.append(
                figure(run.name, says, chart, _grid_table(caption, "layer", gate.layers, gate.languages, share))
            )
            quantiles = gate.quantiles(QUANTILES)
            shares, dimensions = gate.strongest(STRONGEST)
            place = int(shares[:, 0].argmax())
            says = (
                f"The strongest dimension is number {int(dimensions[place, 0])} of layer {gate.layers[place]}, which "
                f"takes {percent(float(shares[place, 0]))}; in that layer half of the dimensions take between "
                f"{percent(float(quantiles[place, 1]))} and {percent(float(quantiles[place, 3]))}. From one prompt to "
                f"the next a dimension's share varies by {number(float(gate.deviation.mean()))} (standard deviation)."
            )
            caption = f"{run.name}: shares of the dimensions, by layer"
            chart = ranges(
                caption, says, list(zip(where, quantiles.tolist(), strict=True)), f"mean share of {language}"
            )
            rows = [
                [
                    name,
                    *(number(value, 3) for value in quantiles[row].tolist()),
                    ", ".join(
                        f"{dimension} ({number(value)})"
                        for dimension, value in zip(dimensions[row].tolist(), shares[row].tolist(), strict=True)
                    ),
                ]
                for row, name in enumerate(where)
            ]
            header = ["layer", "5 %", "25 %", "median", "75 %", "95 %", "strongest dimensions (share)"]
            by_dimension.append(figure(run.name, says, chart, table(caption, header, rows, (0, 6))))
        section.add(heading("By layer and language"), side_by_side(by_layer))
        section.add(heading("By layer and dimension"), side_by_side(by_dimension))
    chosen = [(run, inside.choice) for run in runs if (inside := found.runs[run.name]).choice is not None]
    figures = []
    for run, choice in chosen:
        assert choice is not None
        layers = list(range(choice.share.shape[1]))
        most = _extreme(choice.share, choice.languages, layers, True)
        says = f"For {most[0]}, layer {most[1]} is chosen for {percent(most[2])} of the rows."
        caption = f"{run.name}: share of rows for which each layer is chosen"
        chart = heatmap(caption, says, _names(layers), choice.languages, choice.share.T.tolist(), 0.0, 1.0)
        figures.append(
            figure(run.name, says, chart, _grid_table(caption, "layer", layers, choice.languages, choice.share))
        )
    if figures:
        section.add(heading("Which layer is chosen"), side_by_side(figures))
    over_time = [made for run, _ in learned if (made := _over_training(run, language))]
    if over_time:
        section.add(heading("Over training"), side_by_side(over_time))
    return section


def _over_training(run: Run, language: str) -> str | None:
    """The gate's mean share over the steps, by layer where it was logged so (`log_connection`)."""
    keys = sorted({key for line in run.metrics for key in line if key.startswith("decision_layer_")})
    named = [(f"layer {int(key.rsplit('_', 1)[1])}", run.series(key)) for key in keys]
    hint = "" if named else " Set log_connection: true in training to have it by layer."
    named = [(name, found) for name, found in named or [("all layers", run.series("decision"))] if len(found[0]) > 1]
    if not named:
        return None
    changes = [(name, ys[0], ys[-1]) for name, (_, ys) in named]
    name, first, last = max(changes, key=lambda one: abs(one[2] - one[1]))
    which = f"It changed most in {name}, " if len(changes) > 1 else "The mean over layers went "
    says = f"{which}from {percent(first)} at the first log to {percent(last)} at the last.{hint}"
    shown = named if len(named) <= 8 else [named[place * (len(named) - 1) // 7] for place in range(8)]
    if len(shown) < len(named):
        says += f" Of {len(named)} layers, {len(shown)} are drawn."
    title = f"{run.name}: mean share of {language} over training"
    chart = lines(title, says, [Series(n, *xy, style=i) for i, (n, xy) in enumerate(shown)], "step", "share")
    return figure(run.name, says, chart, series_table(title, named))


def series_table(caption: str, named: Sequence[tuple[str, tuple[Sequence[float], Sequence[float]]]]) -> str:
    """Steps down, series across; of many steps, some forty."""
    steps = sorted({x for _, (xs, _) in named for x in xs})
    if len(steps) > 40:
        kept = {steps[place * (len(steps) - 1) // 39] for place in range(40)}
        steps = [step for step in steps if step in kept]
        caption += f" ({len(steps)} steps of those logged)"
    columns = [dict(zip(xs, ys, strict=True)) for _, (xs, ys) in named]
    rows = [[f"{step:g}", *(number(column.get(step), 4) for column in columns)] for step in steps]
    return table(caption, ["step", *(name for name, _ in named)], rows)


def transforming(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """What the transform does."""
    section = Section("transform", "What the transform does")
    shapes: list[str] = []
    closed: list[str] = []
    for run in runs:
        inside = found.runs[run.name]
        if run.connected and run.connection.connection == "gated" and run.connection.transform == "none":
            section.add(paragraph(f"{run.name} has no transform: what it learned is in its weights alone."))
        elif run.connected:
            if inside.shape is not None:
                shapes += _shape(run, inside)
            closed.append(_closed(run, inside, language))
        else:
            section.add(paragraph(f"{run.name} has no connection, so no transform."))
    if shapes:
        section.add(heading("Distance from the identity, and effective rank"), side_by_side(shapes))
    if closed:
        section.add(heading("How much of the gap it closes, by layer and language"), side_by_side(closed))
    return section


def _shape(run: Run, inside: Inside) -> list[str]:
    """Two figures: distance from the identity, effective rank."""
    shape = inside.shape
    assert shape is not None
    furthest = int(shape.distance.argmax())
    distance, rank = shape.distance.tolist(), shape.effective_rank.tolist()
    which = "The one matrix" if len(shape.layers) == 1 else f"The matrix of layer {shape.layers[furthest]}"
    most = "" if len(shape.layers) == 1 else ", the most"
    far = f"{which} stands {percent(distance[furthest])} of the identity away from it{most}."
    spread = f"{number(min(rank), 1)} to {number(max(rank), 1)}" if len(rank) > 1 else number(rank[0], 1)
    wide = f"Its changes spread over {spread} directions, of {shape.rank} possible."
    title = f"{run.name}: distance of each matrix from the identity"
    rows = [
        [str(layer), number(one, 4), number(other, 2)]
        for layer, one, other in zip(shape.layers, distance, rank, strict=True)
    ]
    header = ["layer", "||W − I|| / ||I||", f"effective rank (of {shape.rank})"]
    xs = [float(layer) for layer in shape.layers]
    first = lines(title, far, [Series("distance", xs, distance)], "layer", "||W − I|| / ||I||")
    ranked = f"{run.name}: effective rank of what each matrix changes"
    second = lines(ranked, wide, [Series("effective rank", xs, rank)], "layer", "directions")
    return [
        figure(run.name, far, first, table(title, header, rows)),
        figure(run.name, wide, second, table(ranked, header, rows)),
    ]


def _closed(run: Run, inside: Inside, language: str) -> str:
    errors = inside.errors
    assert errors is not None
    closed = errors.closed
    by_language = 1 - errors.error.sum(dim=1) / errors.identity.sum(dim=1).clamp(min=1e-30)
    worst, best = int(by_language.argmin()), int(by_language.argmax())
    names = list(language_names(errors.languages).values())
    behind = [name for name, value in zip(names, by_language, strict=True) if value <= 0]
    missed = f" It does no better than doing nothing for {listed(behind)}." if behind else ""
    says = (
        f"Over all layers the transform closes {percent(float(by_language[best]))} of the gap to its target for "
        f"{names[best]}, the most, and {percent(float(by_language[worst]))} for "
        f"{names[worst]}, the least.{missed}"
    )
    title = f"{run.name}: share of the gap closed by the transform"
    top = max(0.05, float(torch.nan_to_num(closed).abs().max()))
    chart = heatmap(title, says, _names(errors.layers), errors.languages, closed.T.tolist(), 0.0, top)
    tables = [
        _grid_table(f"{run.name}: {what}", "layer", errors.layers, errors.languages, values)
        for what, values in (
            ("share of the gap closed, 1 − error / error of doing nothing", closed),
            ("relative error of the transform, ||hW − f||² / ||f||²", errors.error),
            ("relative error of doing nothing, ||h − f||² / ||f||²", errors.identity),
            ("how far the transform moves an activation, ||hW − h||² / ||h||²", errors.moved),
        )
    ]
    return figure(run.name, says, chart, "".join(tables))


def meeting_section(runs: Sequence[Run], found: Findings, language: str) -> Section:
    """Whether languages meet."""
    section = Section("meeting", "Whether languages meet")
    section.add(
        paragraph(
            f"How alike the FFN activations of a prompt and of its {language} parallel are at the prompt's last "
            "token. CKA compares the whole geometry of two languages: 1 is the same, 0 unrelated (unbiased estimate). "
            "The cosine is of a prompt with its own parallel; thin lines, with other prompts' parallels.",
        )
    )
    bases: dict[str, list[Run]] = {}
    for run in runs:
        bases.setdefault(run.base, []).append(run)
    for path, own in bases.items():
        base = found.bases[path]
        named = [("base", base), *((run.name, found.runs[run.name]) for run in own)]
        languages = sorted(set.intersection(*(set(inside.meeting.languages) for _, inside in named)))
        met = [(name, inside.meeting.of(languages)) for name, inside in named]
        pictures = [_alike(met, "cka", "unbiased linear CKA"), _alike(met, "cosine", "cosine")]
        where = f", from {Path(path).name}" if len(bases) > 1 else ""
        section.add(heading(f"By layer{where}"), side_by_side(pictures))
        section.add(
            heading(f"Change in CKA against the base{where}"),
            side_by_side([_change(name, met[0][1], tuned, language) for name, tuned in met[1:]]),
        )
        planes = [_plane(name, inside, language) for name, inside in named]
        section.add(heading(f"Parallel prompts, seen from above{where}"), side_by_side(planes))
    return section


def _alike(named: Sequence[tuple[str, Meeting]], kind: str, label: str) -> str:
    """One of the two measures by layer, all of the same languages."""
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
    says = f"Mean over layers and languages: {told[0]}, {listed(told[1:])}."
    if not math.isfinite(means[0]):
        says = f"No figure: there are too few different rows a language ({TOO_FEW})."
    if kind == "cosine":
        says += f" Above that of unrelated pairs by: {', '.join(gaps)}."
    title = f"Mean {label} by layer"
    header = ["model", "layer", "mean", *language_names(named[0][1].languages).values()]
    return figure("", says, lines(title, says, series, "layer", label), table(title, header, rows))


def _change(run: str, base: Meeting, tuned: Meeting, language: str) -> str:
    """Change in CKA, both of the same languages."""
    change, layers, languages = tuned.cka - base.cka, tuned.layers, tuned.languages
    mean = change.nanmean(dim=1)
    most = int(torch.nan_to_num(mean, nan=-torch.inf).argmax())
    least = int(torch.nan_to_num(mean, nan=torch.inf).argmin())
    gained, names = float(mean[most]), list(language_names(languages).values())
    if not math.isfinite(gained):
        says = f"No figure: there are too few different rows a language ({TOO_FEW})."
    elif gained > 0:
        says = (
            f"{names[most]} came closest to {language} ({number(gained)} over the layers), "
            f"{names[least]} least ({number(float(mean[least]))})."
        )
    else:
        best = f"the best is {names[most]} with {number(gained)} over the layers"
        says = f"No language came closer to {language}: {best}."
    title = f"{run}: change in CKA by layer and language"
    top = max(0.05, float(torch.nan_to_num(change).abs().max()))
    chart = heatmap(title, says, _names(layers), languages, change.T.tolist(), 0.0, top)
    return figure(run, says, chart, _grid_table(title, "layer", layers, languages, change))


def _plane(name: str, inside: Inside, language: str) -> str:
    plane, names = inside.plane, language_names(inside.plane.points)
    groups = [
        Points(names[code], points, style + 1, plane.links[code])
        for style, (code, points) in enumerate(plane.points.items())
    ]
    groups.append(Points(language, plane.parallels, 0))
    own = torch.tensor([point for points in plane.points.values() for point in points])
    theirs = torch.tensor([point for points in plane.links.values() for point in points])
    spread = float((theirs - theirs.mean(dim=0)).norm(dim=1).mean()) or 1.0
    apart = float((own - theirs).norm(dim=1).mean()) / spread
    says = (
        f"In layer {plane.layer}, a prompt lies {number(apart)} times as far from its {language} parallel as the "
        f"{language} prompts lie from their middle. The plane shows {percent(sum(plane.explained))} of the variance."
    )
    title = f"{name}: {len(plane.parallels)} prompts and their parallels in layer {plane.layer}"
    labels = [f"component {place + 1} ({percent(share)})" for place, share in enumerate(plane.explained)]
    rows = [
        [names[code], number(x), number(y), number(a), number(b)]
        for code, points in plane.points.items()
        for (x, y), (a, b) in zip(points, plane.links[code], strict=True)
    ]
    header = ["language", "x", "y", f"x of its {language} parallel", "y"]
    return figure(name, says, scatter(title, says, groups, *labels), table(title, header, rows))
