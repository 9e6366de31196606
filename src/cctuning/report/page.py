"""Build the page and its parts from the templates `page.html`, `page.css` and `parts.html`; format what they show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cctuning.languages import language_name

_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_PARTS: Any = _ENVIRONMENT.get_template("parts.html").module
paragraph, heading, bullets, table = _PARTS.paragraph, _PARTS.heading, _PARTS.bullets, _PARTS.table
figure, block, side_by_side, example = _PARTS.figure, _PARTS.block, _PARTS.side_by_side, _PARTS.example

# Variables of the style sheet, by colour scheme.
LIGHT = {
    **{"ground": "#ffffff", "ink": "#1b1f24", "dim": "#50575f", "rule": "#d5d9de", "soft": "#f3f5f7"},
    **{"link": "#0b57a4", "good": "#1a7440", "bad": "#b3261e"},
    **{"s0": "#0b5cad", "s1": "#b3421e", "s2": "#1a7441", "s3": "#7a3e9d", "s4": "#7a5a00", "s5": "#00707a"},
    **{"s6": "#a0346e", "s7": "#50575e"},
}
DARK = {
    **{"ground": "#14171a", "ink": "#e6e8ea", "dim": "#a9b0b7", "rule": "#3a4047", "soft": "#1e2226"},
    **{"link": "#8cc2ff", "good": "#6fd39b", "bad": "#ff9b8f"},
    **{"s0": "#7ab8ff", "s1": "#ff9f7a", "s2": "#6fd39b", "s3": "#cfa2f2", "s4": "#e0b252", "s5": "#5fd0d8"},
    **{"s6": "#f29bc4", "s7": "#b5bac0"},
}
PRINT = LIGHT | {"ink": "#000000", "dim": "#444444", "rule": "#bbbbbb", "soft": "#ffffff", "link": "#000000"}


@dataclass
class Section:
    """A part of the page under its own heading. Parts that are not `Markup` are escaped."""

    key: str
    title: str
    parts: list[Markup] = field(default_factory=list)

    def add(self, *parts: Markup) -> Section:
        self.parts += parts
        return self


def document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The page: one file without scripts that loads nothing."""
    colours = {"light": LIGHT, "dark": DARK, "print": PRINT}
    return _ENVIRONMENT.get_template("page.html").render(
        title=title, lead=lead, sections=sections, footer=footer, **colours
    )


# -- numbers, languages and lists -------------------------------------------------------------------------------------


def language_names(codes: Iterable[str]) -> dict[str, str]:
    """Name of each code; with the code if several have the same name."""
    names = {code: language_name(code) for code in codes}
    often = Counter(names.values())
    return {code: name if often[name] == 1 else f"{name} ({code})" for code, name in names.items()}


def number(value: float | None, digits: int = 2) -> str:
    """`1,234`, `0.17`, `-0.20`; a dash for None. Small values keep `digits` significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{value:,.0f}".replace("-", "−")
    if 0 < abs(value) < 10**-digits:
        return f"{value:.{digits}g}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def points(value: float | None, signed: bool = True) -> str:
    """A value in [-1, 1] in points, as `+1.3`; without sign, as `57.4`."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:{'+' if signed else ''}.1f}".replace("-", "−")


def percent(value: float) -> str:
    """A share as `17 %`; below 1 % with one more digit."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.{0 if abs(value) >= 0.01 or value == 0 else 1}f} %".replace("-", "−")


def count(value: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; of more than `most`, the first ones and the number of others."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
