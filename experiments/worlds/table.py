"""What records say: means over bases, and paired differences with their intervals.

Bases differ by ten points and more, so only differences on the same base count: each base gives one difference, and
the interval is Student's over bases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from cctuning.demo.base import ENGLISH, World
from cctuning.demo.cldr import majority, others
from cctuning.evaluation.statistics import t_interval
from cctuning.markdown import table
from experiments.worlds.cells import Record, share

PAIRS = (
    ("default+replay", "vanilla+replay"),
    ("default+free+replay", "default+replay"),
    ("cc-start+replay", "vanilla+replay"),
    ("cc-start+replay", "default+replay"),
    ("cc-start+replay", "align-start+replay"),
    ("align-start+replay", "vanilla+replay"),
    ("cc-start+replay", "cc+replay"),
    ("cc+replay", "vanilla+replay"),
    ("cc-start-weight+replay", "align-start-weight+replay"),
    ("cc-start+replay", "cc-start-no-decision+replay"),
    ("cc-start+replay", "cc-start-no-transform+replay"),
    ("own-start+replay", "vanilla+replay"),
    ("cc-start+replay", "wrong-english-start+replay"),
)  # the first minus the second


def summarise(world: World, results: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Return the figures of one setup in %, and differences in points.

    Args:
        results: recipe -> its records of the test split, one for each base in the same order.
    """
    flags = majority(world)
    summary: dict[str, Any] = {
        "items": len(flags),
        "majority": 100 * sum(flags) / len(flags),
        "languages": {lang: [tongue.name, tongue.tier] for lang, tongue in world.languages.items()},
        "recipes": {name: _figures(world, records) for name, records in results.items()},
        "differences": {},
    }
    for first, second in PAIRS:
        if first in results and second in results and len(results[first]) > 1:
            pairs = list(zip(results[first], results[second], strict=True))
            summary["differences"][f"{first} - {second}"] = {
                "x": _interval(pairs, share),
                "english": _interval(pairs, partial(share, languages=[ENGLISH])),
                "languages": {lang: _interval(pairs, partial(share, languages=[lang])) for lang in others(world)},
            }
    return summary


def _figures(world: World, records: Sequence[Record]) -> dict[str, Any]:
    def mean(of: Callable[[Record], float]) -> float:
        return round(sum(map(of, records)) / len(records), 2)

    found: dict[str, Any] = {
        "x": mean(share),
        "english": mean(partial(share, languages=[ENGLISH])),
        "by_base": [round(share(one), 2) for one in records],
        "english_by_base": [round(share(one, [ENGLISH]), 2) for one in records],
        "languages": {lang: mean(partial(share, languages=[lang])) for lang in world.languages},
        "seconds": mean(lambda one: one["seconds"]),
        "tokens": mean(lambda one: one.get("tokens", 0)),
        "settings": records[0]["cell"]["settings"],
    }
    for way in ("bypass", "live"):
        if all(way in one["right"] for one in records):
            found[way] = mean(partial(share, way=way))
    return found


def _interval(pairs: Sequence[tuple[Record, Record]], of: Callable[[Record], float]) -> dict[str, Any]:
    values = [of(one) - of(two) for one, two in pairs]
    return {**asdict(t_interval(values)), "wins": sum(value > 0 for value in values)}


def markdown(setup: str, summary: Mapping[str, Any]) -> str:
    """Return the summary as Markdown tables."""
    heads = {lang: f"{name} ({tier})" for lang, (name, tier) in summary["languages"].items() if lang != ENGLISH}
    bases = len(next(iter(summary["recipes"].values()))["by_base"])
    body = []
    for recipe, entry in summary["recipes"].items():
        cells = [f"`{recipe}`", *(f"{entry['languages'][lang]:.1f}" for lang in heads), f"**{entry['x']:.1f}**"]
        cells += [
            f"{entry['english']:.1f}",
            *(f"{entry[way]:.1f}" if way in entry else "" for way in ("bypass", "live")),
        ]
        cells += [f"{entry['tokens'] / 1000:.0f}" if entry["tokens"] else "", f"{entry['seconds']:.0f}"]
        body.append([*cells, settings_text(entry.get("settings", {}))])
    parts = [
        f"Setup `{setup}`, test split: % right of {summary['items']} questions a language, mean of {bases} bases "
        f"(majority floor {summary['majority']:.0f}).",
        table(["recipe", *heads.values(), "**x**", "English", "bypass", "live", "k tokens", "s", "settings"], body),
    ]
    if summary["differences"]:
        rows = [
            [name, f"**{_text(one['x'])}**", f"{one['x']['wins']} of {bases}", _text(one["english"])]
            + [_text(one["languages"][lang]) for lang in heads]
            for name, one in summary["differences"].items()
        ]
        parts += [
            f"Paired over {bases} bases, points, 95 % intervals (Student's t over bases):",
            table(["difference", "x", "bases won", "English", *heads.values()], rows),
        ]
    parts.append(
        "x: mean of the languages other than English. bypass: without W. live: with the English question as "
        "reference. k tokens: thousands read in training. s: seconds per cell."
    )
    return "\n\n".join(parts) + "\n"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Options as `name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _text(one: Mapping[str, float]) -> str:
    return f"{one['value']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})"
