"""A benchmark's picture as an SVG file, drawn with the report's charts; matplotlib is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cctuning.report.style import STYLE
from cctuning.report.svg import Chart, Estimate, Series, forest, lines, text
from measuring import Ratio


def save(path: Path, chart: Chart) -> None:
    """Write `chart` as a file that stands alone: with its style, and its legend inside."""
    body, height = chart.body, chart.height
    for place, (name, swatch) in enumerate(chart.legend):
        y = height + 16 * place
        body += swatch.replace("<svg ", f'<svg x="44" y="{y:g}" width="24" height="14" ', 1) + text(74, y + 11, name)
    drawn = replace(chart, body=body, height=height + 16 * len(chart.legend)).render()
    drawn = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="720" ', 1)
    drawn = drawn.replace("<title>", f"<style>{STYLE}</style><title>", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


def ratios(path: Path, title: str, found: Sequence[Ratio]) -> None:
    """What each case costs beyond its rival, in percent, with quartiles."""
    rows = []
    for one in found:
        kind = "same" if one.target is None else "better" if one.ratio <= one.target else "worse"
        value, low, high = (100 * (part - 1) for part in (one.ratio, one.low, one.high))
        rows.append(Estimate(one.name, value, low, high, kind))
    description = "Median and quartiles over alternating rounds; triangles up meet their target, down miss it."
    save(path, forest(title, description, rows, "% of the rival's time, beyond it"))


def growth(path: Path, title: str, xs: Sequence[float], ys: dict[str, Sequence[float]], x: str, y: str) -> None:
    """One line a name of `ys` over `xs`."""
    series = [Series(name, xs, values, style) for style, (name, values) in enumerate(ys.items())]
    save(path, lines(title, f"{y} over {x}.", series, x, y))
