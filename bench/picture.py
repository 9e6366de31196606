"""Draw a benchmark's result as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from measuring import Ratio

COLOURS = {"better": "#1a7440", "worse": "#b3261e", "same": "#50575f"}
MARKERS = {"better": "^", "worse": "v", "same": "o"}


def _axes(title: str, width: float, height: float) -> Any:
    axes = Figure((width, height), layout="constrained").add_subplot()
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _save(axes: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        axes.figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}", flush=True)


def ratios(path: Path, title: str, found: Sequence[Ratio]) -> None:
    """What each case costs beyond its rival, in percent, with quartiles."""
    axes = _axes(title, 7, 1.2 + 0.3 * len(found))
    for place, one in enumerate(found):
        kind = "same" if one.target is None else "better" if one.ratio <= one.target else "worse"
        value, low, high = (100 * (part - 1) for part in (one.ratio, one.low, one.high))
        axes.plot([low, high], [place, place], color=COLOURS[kind])
        axes.plot(value, place, MARKERS[kind], color=COLOURS[kind])
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(found)), [one.name for one in found])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlabel("% of the rival's time, beyond it: median and quartiles; triangles up meet their target")
    _save(axes, path)


def growth(path: Path, title: str, xs: Sequence[float], ys: dict[str, Sequence[float]], x: str, y: str) -> None:
    """One line a name of `ys` over `xs`."""
    axes = _axes(title, 7, 4)
    for marker, (name, values) in zip("os^DvPXp" * len(ys), ys.items(), strict=False):
        axes.plot(xs, values, marker=marker, label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.4)
    axes.legend(frameon=False)
    _save(axes, path)
