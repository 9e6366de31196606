"""Draw charts as inline SVG.

No library is used because charts need titles for screen readers, the colours of the page's style sheet (light, dark,
print) and legible text at a width of 328 pixels, without loading anything. A chart is 360 units wide and scales to its
place; text is 11 units high. Series differ in dash and shape as well as in colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from cctuning.report.formatting import number

WIDTH = 360
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4", "4 2 1 2", "3 5")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "ring")


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH x `height` units. `title`, `description`: for screen readers. `legend`: (name, swatch)."""

    title: str
    description: str
    body: str
    height: float
    legend: list[tuple[str, str]] = field(default_factory=list)

    def render(self) -> str:
        """As an `svg` element."""
        return (
            f'<svg role="img" viewBox="0 0 {WIDTH} {self.height:g}"><title>{escape(self.title)}</title>'
            f"<desc>{escape(self.description)}</desc>{self.body}</svg>"
        )


@dataclass(frozen=True)
class Series:
    """A line. `style`: number of its colour and dash."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int = 0
    quiet: bool = False  # thin, without marks and legend


def _f(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def text(x: float, y: float, content: str, anchor: str = "start", style: str = "") -> str:
    """A line of text with its baseline at (x, y)."""
    kind = f' class="{style}"' if style else ""
    return f'<text x="{_f(x)}" y="{_f(y)}" text-anchor="{anchor}"{kind}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{_f(x1)}" y1="{_f(y1)}" x2="{_f(x2)}" y2="{_f(y2)}" class="{style}"/>'


def marker(x: float, y: float, shape: str, style: str, size: float = 3.5) -> str:
    """A small shape around (x, y)."""
    if shape in ("circle", "ring"):
        ring = " hollow" if shape == "ring" else ""
        return f'<circle cx="{_f(x)}" cy="{_f(y)}" r="{_f(size)}" class="mark {style}{ring}"/>'
    around: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
        "down": [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
        "diamond": [(0, -1.4), (1.2, 0), (0, 1.4), (-1.2, 0)],
    }
    if shape in around:
        corners = " ".join(f"{_f(x + a * size)},{_f(y + b * size)}" for a, b in around[shape])
        return f'<polygon points="{corners}" class="mark {style}"/>'
    a = size * (1.2 if shape == "plus" else 0.9)
    strokes = f"M{_f(x - a)} {_f(y)}H{_f(x + a)}M{_f(x)} {_f(y - a)}V{_f(y + a)}"
    if shape == "cross":
        strokes = f"M{_f(x - a)} {_f(y - a)}L{_f(x + a)} {_f(y + a)}M{_f(x - a)} {_f(y + a)}L{_f(x + a)} {_f(y - a)}"
    return f'<path d="{strokes}" class="stroke {style}"/>'


def swatch(style: int, shape: str | None = None) -> str:
    """The key of a legend entry: a dash of the line, or a point."""
    kind = f"s{style % 8}"
    inside = (
        marker(12, 7, shape, kind)
        if shape
        else f'<path d="M1 7H23" class="line {kind}" stroke-dasharray="{DASHES[style % 8]}"/>'
    )
    return f'<svg class="key" viewBox="0 0 24 14" aria-hidden="true" focusable="false">{inside}</svg>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Up to `count` + 1 round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    step = 10 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float, around: Sequence[float]) -> str:
    step = min((b - a for a, b in itertools.pairwise(around)), default=abs(value) or 1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return (f"{value:,.{digits}f}" if digits < 6 else f"{value:.3g}").replace("-", "−")


def lines(title: str, description: str, series: Sequence[Series], x_label: str, y_label: str) -> Chart:
    """Lines over a common x axis. The y axis includes 0."""
    left, right, top, bottom, height = 44, WIDTH - 8, 22, 176, 212
    ys = [y for one in series for y in one.ys if math.isfinite(y)]
    xs = [x for one in series for x in one.xs]
    low, high = min(ys, default=0.0), max(ys, default=1.0)  # an empty frame without values
    low = min(low, 0.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    first, last = min(xs), max(xs)

    def px(x: float) -> float:
        return left + (x - first) / ((last - first) or 1) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    marks = ticks(low, high)
    body = [text(2, 12, y_label, style="dim")]
    for y in marks:
        body += [line(left, py(y), right, py(y), "rule"), text(left - 5, py(y) + 4, _tick_text(y, marks), "end")]
    whole = all(float(x).is_integer() for x in xs)
    along = [x for x in ticks(first, last) if not whole or float(x).is_integer()] or [first]
    for x in along:
        anchor = "end" if px(x) > right - 14 else "middle"
        body += [
            line(px(x), bottom, px(x), bottom + 4, "axis"),
            text(px(x), bottom + 16, _tick_text(x, along), anchor),
        ]
    body += [line(left, bottom, right, bottom, "axis"), text((left + right) / 2, height - 4, x_label, "middle", "dim")]
    legend = []
    for one in series:
        kind = f"s{one.style % 8}{' quiet' if one.quiet else ''}"
        kept = [(px(x), py(y)) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
        dash = DASHES[one.style % 8]
        path = "L".join(f"{_f(x)} {_f(y)}" for x, y in kept)
        if len(kept) > 1:
            body.append(f'<path d="M{path}" class="line {kind}" stroke-dasharray="{dash}"/>')
        if len(kept) <= 12 and not one.quiet:
            body += [marker(x, y, SHAPES[one.style % 8], kind, 2.5) for x, y in kept]
        if not one.quiet:
            legend.append((one.name, swatch(one.style)))
    return Chart(title, description, "".join(body), height, legend if len(legend) > 1 else [])


@dataclass(frozen=True)
class Estimate:
    """A row of `forest`: a value with its interval. `kind`: `better`, `worse` or `same`."""

    label: str
    value: float
    low: float
    high: float
    kind: str
    summary: bool = False  # a mean, below a rule


def forest(title: str, description: str, rows: Sequence[Estimate], label: str) -> Chart:
    """Values with intervals around zero, one per row."""
    labels = [_short(one.label, 22) for one in rows]
    figures = [f"{one.value:+.1f} [{one.low:+.1f}, {one.high:+.1f}]".replace("-", "−") for one in rows]
    left, row = max(92.0, 6.2 * max(map(len, labels))), 22  # 6.2: width of a letter
    right = min(236.0, WIDTH - 8 - 5.6 * max(map(len, figures)))  # 5.6: width of a small letter
    low = min(0.0, *(one.low for one in rows))
    high = max(0.0, *(one.high for one in rows))
    pad = (high - low or 1) * 0.06
    low, high = low - pad, high + pad

    def px(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    bottom = 10 + row * len(rows)
    along = ticks(low, high)
    body = [line(px(x), 4, px(x), bottom, "zero" if abs(x) < 1e-9 else "rule") for x in along]
    body += [text(px(x), bottom + 14, _tick_text(x, along), "middle") for x in along]
    body.append(text((left + right) / 2, bottom + 28, label, "middle", "dim"))
    shapes = {"better": "triangle", "worse": "down", "same": "ring"}
    for place, one in enumerate(rows):
        y = 4 + row * place + row / 2
        if one.summary and (place == 0 or not rows[place - 1].summary):
            body.append(line(0, y - row / 2, WIDTH, y - row / 2, "rule"))
        weight = "strong" if one.summary else ""
        body.append(text(0, y + 4, labels[place], style=weight))
        body.append(line(px(one.low), y, px(one.high), y, f"bar {one.kind}"))
        body.append(marker(px(one.value), y, shapes[one.kind], one.kind, 4.5))
        body.append(text(WIDTH, y + 4, figures[place], "end", f"small {weight}".strip()))
    return Chart(title, description, "".join(body), bottom + 34)


def _short(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def heatmap(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    low: float,
    high: float,
    digits: int = 2,
) -> Chart:
    """A cell per row and column, coloured from `low` to `high`; another colour below `low`."""
    left, top = 46, 20
    cell = (WIDTH - left) / len(columns)
    tall = 20 if len(rows) <= 16 else 14
    written = cell >= 29 and tall == 20
    every = max(1, math.ceil(24 / cell))  # narrow columns have no name
    body = [text(left + cell * (c + 0.5), 13, name, "middle") for c, name in enumerate(columns) if not c % every]
    for r, name in enumerate(rows):
        y = top + tall * r
        body.append(text(left - 6, y + tall / 2 + 4, name, "end"))
        for c, value in enumerate(values[r]):
            depth = 0.0 if not math.isfinite(value) else min(1.0, abs(value - low) / ((high - low) or 1))
            kind = "cold" if math.isfinite(value) and value < low else "heat"
            x = left + cell * c
            body.append(
                f'<rect x="{_f(x + 0.5)}" y="{_f(y + 0.5)}" width="{_f(cell - 1)}" height="{tall - 1}" '
                f'class="{kind}" fill-opacity="{depth:.2f}"/>'
            )
            if written:
                body.append(text(x + cell / 2, y + tall / 2 + 4, number(value, digits), "middle", "small"))
    legend = []
    if not written:
        legend = [(number(low, digits), _depth("heat", 0.0)), (number(high, digits), _depth("heat", 1.0))]
        if any(math.isfinite(value) and value < low for row in values for value in row):
            legend.insert(0, (number(2 * low - high, digits), _depth("cold", 1.0)))
    return Chart(title, description, "".join(body), top + tall * len(rows) + 4, legend)


def _depth(kind: str, depth: float) -> str:
    return (
        '<svg class="key" viewBox="0 0 24 14" aria-hidden="true" focusable="false">'
        f'<rect width="24" height="14" class="{kind}" fill-opacity="{depth:g}"/></svg>'
    )


def ranges(title: str, description: str, rows: Sequence[tuple[str, Sequence[float]]], label: str) -> Chart:
    """Five quantiles per row: a thin line over the outer two, a thick one over the inner two, a mark at the median."""
    left, right = 46, WIDTH - 10
    tall = 20 if len(rows) <= 16 else 14
    low, high = 0.0, max(quantiles[-1] for _, quantiles in rows) * 1.05 or 1.0

    def px(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    bottom = 6 + tall * len(rows)
    along = ticks(low, high)
    body = [line(px(x), 2, px(x), bottom, "rule") for x in along]
    body += [text(px(x), bottom + 14, _tick_text(x, along), "middle") for x in along]
    body.append(text((left + right) / 2, bottom + 28, label, "middle", "dim"))
    for place, (name, (a, b, c, d, e)) in enumerate(rows):
        y = 4 + tall * (place + 0.5)
        body.append(text(left - 6, y + 4, name, "end"))
        body += [line(px(a), y, px(e), y, "bar s0 thin"), line(px(b), y, px(d), y, "bar s0 thick")]
        body.append(marker(px(c), y, "circle", "ink", 3))
    return Chart(title, description, "".join(body), bottom + 34)


@dataclass(frozen=True)
class Points:
    """A group of `scatter`. `links`: the point that each point is linked to."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    links: Sequence[tuple[float, float]] = ()


def scatter(title: str, description: str, groups: Sequence[Points], x_label: str, y_label: str) -> Chart:
    """Groups of points by shape and colour, with thin lines to linked points; the last group is on top."""
    left, right, top, bottom = 16, WIDTH - 4, 4, 268
    every = [point for group in groups for point in group.points]
    bounds = [(min(one[axis] for one in every), max(one[axis] for one in every)) for axis in (0, 1)]
    scale = max(bounds[0][1] - bounds[0][0], (bounds[1][1] - bounds[1][0]) * (right - left) / (bottom - top)) or 1.0
    unit = (right - left - 16) / scale  # one unit for both axes

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (value - sum(bounds[axis]) / 2 for axis, value in enumerate(point))
        return (left + right) / 2 + x * unit, (top + bottom) / 2 - y * unit

    body = [f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" class="frame"/>']
    for group in groups:
        for one, other in zip(group.points, group.links, strict=False):
            body.append(line(*place(one), *place(other), "link"))
    for group in groups:
        shape, kind = SHAPES[group.style % 8], f"s{group.style % 8}"
        body += [marker(*place(point), shape, kind, 3.5) for point in group.points]
    body.append(text((left + right) / 2, bottom + 14, x_label, "middle", "dim"))
    middle = (top + bottom) / 2
    body.append(
        f'<text x="11" y="{middle:g}" text-anchor="middle" class="dim" transform="rotate(-90 11 {middle:g})">'
        f"{escape(y_label)}</text>"
    )
    legend = [(group.name, swatch(group.style, SHAPES[group.style % 8])) for group in groups]
    return Chart(title, description, "".join(body), bottom + 20, legend)


def bars(title: str, description: str, rows: Sequence[tuple[str, float]], digits: int = 0) -> Chart:
    """A horizontal bar per row, with its value."""
    left, right, tall = 92, WIDTH - 52, 20
    high = max(value for _, value in rows) or 1.0
    body = []
    for place, (name, value) in enumerate(rows):
        y = 2 + tall * place
        wide = value / high * (right - left)
        body.append(text(left - 6, y + 14, _short(name, 15), "end"))
        body.append(f'<rect x="{left}" y="{y + 3}" width="{_f(max(wide, 0.5))}" height="{tall - 6}" class="fill s0"/>')
        body.append(text(left + wide + 5, y + 14, number(value, digits)))
    return Chart(title, description, "".join(body), tall * len(rows) + 4)
