"""Format numbers, languages and lists for the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from cctuning.languages import language_name


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
