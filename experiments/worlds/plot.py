"""A picture of an experiment: every recipe against plain SFT, in the other languages and in English."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cctuning.evaluation.statistics import t_interval
from cctuning.report.style import STYLE
from cctuning.report.svg import Estimate, forest

BASELINE = "vanilla"


def against_vanilla(setup: str, summary: Mapping[str, Any], english: bool = False) -> str | None:
    """An SVG file's text: each recipe minus `vanilla` on the same bases, points, 95 % intervals over bases.

    Args:
        english: draw English in place of the mean of the other languages.

    Returns:
        None where there is no `vanilla`, nothing beside it, or one base alone.
    """
    key = "english_by_base" if english else "by_base"
    recipes = summary["recipes"]
    baseline = recipes.get(BASELINE, {}).get(key, [])
    rows = []
    for name, entry in recipes.items():
        if name not in ("base", BASELINE) and len(baseline) > 1:
            gain = t_interval([one - two for one, two in zip(entry[key], baseline, strict=True)])
            kind = "better" if gain.low > 0 else "worse" if gain.high < 0 else "same"
            rows.append(Estimate(name, gain.value, gain.low, gain.high, kind))
    if not rows:
        return None
    what = "English" if english else "the other languages"
    chart = forest(
        f"{setup}: {what}, each recipe minus {BASELINE}",
        f"Difference on the same {len(baseline)} bases with 95 % intervals over bases; the table says the same.",
        rows,
        f"points against {BASELINE}, {what}",
    )
    drawn = chart.render().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="720" ', 1)
    return drawn.replace("<title>", f"<style>{STYLE}</style><title>", 1) + "\n"
