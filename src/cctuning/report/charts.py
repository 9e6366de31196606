"""Draw figures: a chart as inline SVG below the sentence that says what it shows, with its numbers as a table.

Charts are drawn by matplotlib in the light colours of the page, which are then replaced by the variables of its style
sheet, so that a chart follows the reader's colour scheme. They are `WIDTH` units wide and scale to their place.
Series differ in dash and marker as well as in colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from cctuning.report.page import LIGHT, figure, number, table

WIDTH = 360
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 3, 2, 3)), (0, (1, 3)), (0, (10, 4)), (0, (4, 2, 1, 2)))
MARKERS = "os^DvPXp"
SERIES = [LIGHT[f"s{place}"] for place in range(8)]
VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
VERDICTS = {"better": ("^", LIGHT["good"]), "worse": ("v", LIGHT["bad"]), "same": ("o", LIGHT["ground"])}
TABLE_ROWS = 40  # of a line chart
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cctuning",  # the same chart has the same ids
    "font.family": "DejaVu Sans",  # for measuring; the page has its own
    "font.size": 11,
    "text.parse_math": False,
    "legend.frameon": False,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["dim"],
    "axes.edgecolor": LIGHT["dim"],
    "xtick.color": LIGHT["ink"],
    "ytick.color": LIGHT["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
}


def _axes(height: float) -> Any:
    """Axes in a figure of their own."""
    drawn = Figure((WIDTH / 72, height / 72), dpi=72, layout="constrained")
    return drawn.add_subplot()


def _legend(axes: Any, handles: Sequence[Any]) -> None:
    """Add a legend below the axes, with room for it."""
    widest = max(len(str(one.get_label())) for one in handles)
    columns = min(len(handles), max(1, WIDTH // (7 * widest + 48)))
    inches = math.ceil(len(handles) / columns) * 17 / 72
    axes.figure.set_size_inches(WIDTH / 72, axes.figure.get_figheight() + inches)
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _svg(axes: Any, title: str, description: str) -> Markup:
    """The figure as an element of a page; `title` and `description` are for screen readers."""
    file = io.StringIO()
    axes.figure.savefig(file, format="svg", transparent=True)
    _, _, svg = file.getvalue().partition("<svg ")
    size, _, body = svg.partition(">")
    body = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|\n\s*| transform=\"rotate\(-0 [^\"]*\"", "", body, flags=re.DOTALL
    )
    used = set(re.findall(r"#([\w.]+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub("#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), body)
    view = re.search(r'viewBox="[^"]*"', size)
    assert view is not None
    start = f'<svg role="img" {view[0]}><title>{escape(title)}</title><desc>{escape(description)}</desc>'
    return Markup(start + body.strip())


@rc_context(STYLE)
def lines(
    name: str, text: str, title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str
) -> Markup:
    """Lines over a common axis; the other one includes 0. `name` says whose figure it is, `text` what it shows;
    `title` is that of the table; `series` has names, xs and ys."""
    axes = _axes(200)
    handles = []
    for style, (label, (xs, ys)) in enumerate(series.items()):
        look: dict[str, Any] = {"color": SERIES[style % len(SERIES)], "linestyle": DASHES[style % len(DASHES)]}
        marker = MARKERS[style % len(MARKERS)] if len(xs) <= 12 else ""
        handles += axes.plot(xs, ys, label=label, linewidth=1.8, marker=marker, markersize=5, **look)
    values = [value for _, ys in series.values() for value in ys if math.isfinite(value)]
    axes.set_ylim(bottom=None if min(values, default=0) < 0 else 0)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.locator_params(axis="y", nbins=5)
    if len(handles) > 1:
        _legend(axes, handles)
    steps = sorted({x for xs, _ in series.values() for x in xs})
    if len(steps) > TABLE_ROWS:
        steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, TABLE_ROWS)]
    columns = [dict(zip(xs, ys, strict=True)) for xs, ys in series.values()]
    rows = [[f"{step:g}", *(number(column.get(step), 4) for column in columns)] for step in steps]
    return figure(name, text, title, _svg(axes, title, text), table(title, [x, *series], rows))


@rc_context(STYLE)
def forest(
    name: str, text: str, title: str, rows: Sequence[tuple[str, float, float, float, str]], x: str, numbers: Markup
) -> Markup:
    """Estimates with intervals around zero, one below the other; of each, label, value, low, high and verdict."""
    axes = _axes(44 + 21 * len(rows))
    for place, (_, value, low, high, verdict) in enumerate(rows):
        marker, colour = VERDICTS[verdict]
        edge = LIGHT["dim"] if verdict == "same" else colour
        axes.plot([low, high], [place, place], color=edge, linewidth=1.8)
        axes.plot(value, place, marker=marker, color=edge, markerfacecolor=colour, markersize=8)
        told = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
        axes.text(1.02, place, told, va="center", fontsize=10, transform=axes.get_yaxis_transform())
    axes.axvline(0, color=LIGHT["ink"], linewidth=1)
    labels = [label if len(label) <= 22 else f"{label[:21]}…" for label, *_ in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(x)
    return figure(name, text, title, _svg(axes, title, text), numbers)
