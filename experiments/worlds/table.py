"""What the records of a setup say: means over bases, and paired differences with intervals, as data and Markdown.

Bases differ by ten points and more, so only differences on the same base mean anything: each base gives one
difference, and the interval is Student's over bases. Items are not resampled: a base's error over its items is part of
its spread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cctuning.demo.worlds import ENGLISH, World, chance, majority, others
from cctuning.evaluation.statistics import t_interval
from cctuning.markdown import table
from experiments.worlds.grid import Record, english, score, share, way_of
from experiments.worlds.recipes import RECIPES

COLUMNS = 8  # languages shown one by one
Results = Mapping[str, Sequence[Record]]  # recipe, or `base` -> one record a base, the same bases in each
PAIRS = (  # what the lab is asked: the first minus the second
    ("cc", "vanilla"),
    ("cc", "align"),
    ("align", "vanilla"),
    ("cc+replay", "vanilla+replay"),
    ("cc+replay", "vanilla"),
    ("cc+replay", "align+replay"),
    ("align+replay", "vanilla+replay"),
    ("cc-start+replay", "vanilla+replay"),
    ("cc-start+replay", "cc+replay"),
    ("cc-start+replay", "align-start+replay"),
    ("align-start+replay", "vanilla+replay"),
    ("own-start+replay", "vanilla+replay"),
    ("cc-start+replay", "own-start+replay"),
    ("cc-start+replay", "cc-start-no-decision+replay"),
    ("cc-start+replay", "cc-start-no-transform+replay"),
    ("cc-start+replay", "wrong-english-start+replay"),
    ("cc-start+replay", "more-steps+replay"),
    ("cc-start+replay", "capacity+replay"),
    ("cc-start-weight+replay", "vanilla+replay"),
    ("cc-start-weight+replay", "align-start-weight+replay"),
    ("cc-start-weight+replay", "cc-start+replay"),
    ("cc-start-weight+replay", "cc-start-no-decision-weight+replay"),
    ("cc-start-lora+replay", "vanilla-lora+replay"),
    ("cc-start-lora+replay", "align-start-lora+replay"),
    ("cc-start-lora+replay", "cc-start+replay"),
    ("cc-start+translation+replay", "translation+replay"),
    ("cc-start+free+replay", "cc-start+replay"),
    ("cc-start+free+replay", "align-start+free+replay"),
    ("cc-start+free+replay", "vanilla+replay"),
    ("cc-start+free+replay", "vanilla+text+replay"),
    ("cc+replay", "cc"),
    ("cc", "cc-no-decision"),
    ("cc", "cc-no-transform"),
    ("cc", "transform-only"),
    ("cc", "cc-fused-only"),
    ("cc+replay", "cc-fused-only+replay"),
    ("cc", "cc-nonlinear"),
    ("cc", "cc-both-passes"),
    ("cc", "cc-adaptive"),
    ("cc", "capacity"),
    ("cc", "wrong-english"),
    ("cc", "more-steps"),
    ("cc", "translation"),
    ("cc", "distillation"),
    ("cc", "xtune"),
    ("xtune", "vanilla"),
    ("cc", "mad-x"),
    ("mad-x", "vanilla"),
    ("cc+translation", "translation"),
    ("cc+free", "align+free"),
    ("cc+free", "vanilla+text"),
    ("cc+free", "cc"),
)


def tiers(world: World) -> dict[str, list[str]]:
    """Tier -> its languages, English's left out."""
    found: dict[str, list[str]] = {}
    for lang in others(world):
        found.setdefault(world.languages[lang].tier, []).append(lang)
    return found


def asked(record: Record, task: str, kinds: Sequence[str], way: str = "student") -> float:
    """% right of one kind of question, over the languages but English; `kinds`: each question's."""
    flags = [
        flag
        for lang, own in record["right"][way].items()
        if lang != ENGLISH
        for flag, kind in zip(own, kinds, strict=True)
        if kind == task
    ]
    return 100 * flags.count("1") / len(flags)


def summarise(worlds: Sequence[World], results: Results) -> dict[str, Any]:
    """Figures of one setup, in %, and differences in points.

    Args:
        worlds: of the bases; tiers and floors are the first one's.
        results: the records of the test split; each recipe's in the same order of bases.

    Returns:
        `recipes`: per recipe the means (x, English, each language, each kind of question in x, bypass, live, seconds,
        tokens) and each base's x; `differences`: per pair of `PAIRS` that is there, the intervals for x, English, each
        language and each kind of question.
    """
    world, kinds = worlds[0], [[item.task for item in world.items(ENGLISH, "test")] for world in worlds]
    tasks = sorted({*kinds[0]})
    summary: dict[str, Any] = {
        "items": len(world.items(ENGLISH, "test")),
        "majority": 100 * sum(majority(world)) / len(majority(world)),
        "chance": 100 * chance(world),
        "languages": {lang: [tongue.name, tongue.tier] for lang, tongue in world.languages.items()},
        "recipes": {},
        "differences": {},
    }
    for recipe, records in results.items():
        entry: dict[str, Any] = {
            "x": _mean([score(one, way_of(recipe)) for one in records]),
            "english": _mean([english(one, way_of(recipe)) for one in records]),
            "by_base": [round(score(one, way_of(recipe)), 2) for one in records],
            "english_by_base": [round(english(one, way_of(recipe)), 2) for one in records],
            "languages": {
                lang: _mean([share(one, [lang], way_of(recipe)) for one in records]) for lang in world.languages
            },
            "tiers": {
                tier: _mean([share(one, of, way_of(recipe)) for one in records]) for tier, of in tiers(world).items()
            },
            "tasks": {
                task: _mean([asked(one, task, own, way_of(recipe)) for one, own in zip(records, kinds, strict=True)])
                for task in tasks
            },
            "seconds": _mean([one["seconds"] for one in records]),
            "tokens": _mean([one.get("tokens", 0) for one in records]),
        }
        if recipe in RECIPES:
            entry["settings"] = records[0]["cell"]["settings"]
        for way in ("bypass", "live"):
            if all(way in one["right"] for one in records) and not (recipe in RECIPES and RECIPES[recipe].of):
                entry[way] = _mean([score(one, way) for one in records])
        if all("benchmarks" in one for one in records):
            entry["benchmarks"] = benchmarks([one["benchmarks"] for one in records])
        summary["recipes"][recipe] = entry
    for first, second in PAIRS:
        if first in results and second in results and len(results[first]) > 1:
            summary["differences"][f"{first} - {second}"] = _difference(world, kinds, results, first, second)
    return summary


def benchmarks(scored: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, list[float]]:
    """Benchmark -> % in English and in the mean of the other languages, means over bases."""

    def x(by: Mapping[str, float]) -> float:
        return _mean([share for lang, share in by.items() if lang != ENGLISH])

    return {
        name: [_mean([one[name][ENGLISH] for one in scored]), _mean([x(one[name]) for one in scored])]
        for name in scored[0]
    }


def _difference(
    world: World, kinds: Sequence[Sequence[str]], results: Results, first: str, second: str
) -> dict[str, Any]:
    pairs = list(zip(results[first], results[second], strict=True))

    def interval(of: Callable[..., float], *which: Any) -> dict[str, Any]:
        return over([of(one, *which, way_of(first)) - of(two, *which, way_of(second)) for one, two in pairs])

    def over(values: Sequence[float]) -> dict[str, Any]:
        return {**asdict(t_interval(values)), "wins": sum(value > 0 for value in values)}

    def by_task(task: str) -> list[float]:
        return [
            asked(one, task, own, way_of(first)) - asked(two, task, own, way_of(second))
            for (one, two), own in zip(pairs, kinds, strict=True)
        ]

    return {
        "x": interval(score),
        "english": interval(english),
        "languages": {lang: interval(share, [lang]) for lang in others(world)},
        "tiers": {tier: interval(share, languages) for tier, languages in tiers(world).items()},
        "tasks": {task: over(by_task(task)) for task in sorted({*kinds[0]})},
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2)


def markdown(setup: str, summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables; more than `COLUMNS` languages are shown by their tiers' means."""
    languages = {lang: names for lang, names in summary["languages"].items() if lang != ENGLISH}
    by = "languages" if len(languages) <= COLUMNS else "tiers"
    heads = {lang: f"{name} ({tier})" for lang, (name, tier) in languages.items()}
    if by == "tiers":
        count = Counter(tier for _, tier in languages.values())
        heads = {tier: f"{tier} ({count[tier]} languages)" for tier in count}
    bases = len(next(iter(summary["recipes"].values()))["by_base"])
    lines = [
        f"Setup `{setup}`, test split: % right of {summary['items']} questions a language, mean of {bases} bases "
        f"(majority floor {summary['majority']:.0f}, chance {summary['chance']:.0f}).",
        "",
    ]
    rows = []
    for recipe, entry in summary["recipes"].items():
        cells = [f"{entry[by][head]:.1f}" for head in heads]
        cells += [f"**{entry['x']:.1f}**", f"{entry['english']:.1f}"]
        cells += [f"{entry[way]:.1f}" if way in entry else "" for way in ("bypass", "live")]
        read = f"{entry['tokens'] / 1000:.0f}" if entry["tokens"] else ""
        settings = ", ".join(f"{name} {value}" for name, value in entry.get("settings", {}).items())
        rows.append([f"`{recipe}`", *cells, read, f"{entry['seconds']:.0f}", settings])
    header = ["recipe", *heads.values(), "**x**", "English", "bypass", "live", "k tokens", "s", "settings"]
    lines.append(table(header, rows))
    if summary["differences"]:
        lines += [
            "",
            f"Paired over {bases} bases, points, 95 % intervals (Student's t over bases):",
            "",
        ]
        rows = []
        for name, entry in summary["differences"].items():
            cells = [_interval(entry["x"], bold=True), f"{entry['x']['wins']} of {bases}", _interval(entry["english"])]
            rows.append([name, *cells, *(_interval(entry[by][head]) for head in heads)])
        lines.append(table(["difference", "x", "bases won", "English", *heads.values()], rows))
    lines += _by_task(summary) + _by_benchmark(summary)
    return "\n".join(lines) + "\n"


def _by_task(summary: Mapping[str, Any]) -> list[str]:
    """A table of the kinds of question: means of each recipe, then the differences."""
    tasks = list(next(iter(summary["recipes"].values()))["tasks"])
    lines = ["", "By kind of question, the languages but English:", ""]
    rows = [
        [f"`{recipe}`", *(f"{entry['tasks'][task]:.1f}" for task in tasks)]
        for recipe, entry in summary["recipes"].items()
    ]
    for name, entry in summary["differences"].items():
        rows.append([name, *(_interval(entry["tasks"][task]) for task in tasks)])
    return [*lines, table(["", *tasks], rows)]


def _by_benchmark(summary: Mapping[str, Any]) -> list[str]:
    """A table of public benchmarks, where the setup has any."""
    scored = {recipe: entry["benchmarks"] for recipe, entry in summary["recipes"].items() if "benchmarks" in entry}
    if not scored:
        return []
    names = list(next(iter(scored.values())))
    lines = ["", "Public benchmarks by `cctuning evaluate`, %: English, and the mean of the other languages:", ""]
    rows = [
        [f"`{recipe}`", *(f"{by[name][0]:.1f}, {by[name][1]:.1f}" for name in names)] for recipe, by in scored.items()
    ]
    return [*lines, table(["", *names], rows)]


def _interval(figure: Mapping[str, float], bold: bool = False) -> str:
    text = f"{figure['value']:+.1f} ({figure['low']:+.1f} to {figure['high']:+.1f})"
    return f"**{text}**" if bold and (figure["low"] > 0 or figure["high"] < 0) else text
