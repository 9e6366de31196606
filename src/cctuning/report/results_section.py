"""The answer that stands first: languages gained and lost against the baseline, English before and after, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cctuning.evaluation.compare import BETTER, SAME, WORSE, Comparison, Row, compare
from cctuning.evaluation.saved_results import ScoredRun, parse_runs, read_run
from cctuning.languages import language_name
from cctuning.report.formatting import count, interval, language_names, listed, number, points
from cctuning.report.page import Section, bullets, figure, heading, paragraph, side_by_side, table
from cctuning.report.runs import Run
from cctuning.report.svg import Estimate, forest
from cctuning.report.training_section import cost

KINDS = {BETTER: "better", WORSE: "worse", SAME: "same"}


@dataclass(frozen=True)
class Evaluated:
    """Evaluations, compared. `before`: the same against the runs' base, where that was scored too; `base` its name."""

    runs: list[ScoredRun]
    comparison: Comparison
    base: str | None
    before: Comparison | None


def read_evaluations(arguments: Sequence[str], baseline: str | None, runs: Sequence[Run]) -> Evaluated | None:
    """Compare what `cctuning evaluate` wrote; the base is known by the path it was scored under.

    Raises:
        UserError: as `compare`.
    """
    if not arguments:
        return None
    named = parse_runs(arguments)
    found = compare(named, baseline)
    scored = [read_run(name, path) for name, path in named]
    bases = {_place(run.base) for run in runs}
    base = next((run.system for run in scored if _place(str(run.record["model"].get("name"))) in bases), None)
    before = found if base == found.baseline else compare(named, base) if base is not None else None
    return Evaluated(scored, found, base, before)


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def answer(runs: Sequence[Run], evaluated: Evaluated | None) -> Section:
    """The first section of the page."""
    section = Section("answer", "What came of it")
    if evaluated is None:
        section.add(
            paragraph(
                "No evaluation was given, so this page cannot say which languages gained. Score the runs, the "
                "baseline and the base with cctuning evaluate, and name the directories with --evaluation.",
                "answer",
            )
        )
    else:
        section.add(*_gains(evaluated), *_english(evaluated))
    return section.add(heading("What it cost"), *cost(runs))


def _gains(evaluated: Evaluated) -> list[str]:
    comparison = evaluated.comparison
    figures, said = [], []
    for system in comparison.systems:
        own = [row for row in comparison.rows if row.system == system and row.difference is not None]
        for benchmark in dict.fromkeys(row.benchmark for row in own if row.benchmark):
            rows = [row for row in own if row.benchmark == benchmark]
            said.append((system, _sentence(comparison, system, rows, benchmark)))
            says = _largest(rows)
            title = f"{system} against {comparison.baseline}, {benchmark}: difference in points"
            names = _languages(rows)
            estimates = [_estimate(row, names[row.language]) for row in rows]
            chart = forest(title, says, estimates, "points, with 95 % interval over items")
            figures.append(figure(f"{system}, {benchmark}", says, chart, _table(comparison, title, system, rows)))
    lead = [paragraph(says, "answer") for system, says in said if system != evaluated.base]
    key = (
        "Triangle up: better; triangle down: worse (p below "
        f"{number(comparison.settings['alpha'])} after Holm's correction); ring: not distinguishable. "
        f"A mean is over the languages but {_home(comparison)[1]}."
    )
    notes = [bullets(f"Note: {note}" for note in comparison.notes)] if comparison.notes else []
    return [
        *lead,
        heading(f"Against {comparison.baseline}, by language"),
        paragraph(key),
        side_by_side(figures),
        *notes,
    ]


def _home(comparison: Comparison) -> tuple[str, str]:
    """Code and name of the language that the models borrow from."""
    code = str(comparison.settings["reference_languages"][0])
    return code, language_name(code)


def _sentence(comparison: Comparison, system: str, rows: Sequence[Row], benchmark: str) -> str:
    code, home = _home(comparison)
    others = [row for row in rows if row.kind == "language" and row.language != code]
    names, verdicts = _languages(rows), []
    for verdict in (BETTER, WORSE, SAME):
        found = [names[row.language] for row in others if row.verdict == verdict]
        if found:
            told = f" ({listed(found)})" if verdict != SAME else ""
            verdicts.append(f"{verdict} in {'all ' if len(found) == len(others) > 1 else ''}{len(found)}{told}")
    parts = [", ".join(verdicts)] if others else []
    mean = next((row for row in rows if row.kind == "mean"), None)
    if mean is not None:
        parts.append(f"on average {points(mean.difference)} points {interval(mean.low, mean.high)}, {mean.verdict}")
    own = next((row for row in rows if row.language == code), None)
    if own is not None:
        parts.append(f"{home} {points(own.difference)} {interval(own.low, own.high)}, {own.verdict}")
    which = f", {count(len(others), 'language')} but {home}" if others else ""
    return f"{system} against {comparison.baseline} on {benchmark}{which}: {'; '.join(parts)}."


def _languages(rows: Sequence[Row]) -> dict[str | None, str]:
    """Names by code; of a mean, None, how many it is of."""
    mean = next((row.languages for row in rows if row.kind == "mean"), 0)
    names: dict[str | None, str] = {None: f"mean of {mean}"}
    names.update(language_names(row.language for row in rows if row.language))
    return names


def _largest(rows: Sequence[Row]) -> str:
    """The largest gain and loss among the languages, English too."""
    own = sorted((row for row in rows if row.kind == "language"), key=lambda row: row.difference or 0.0)
    ends = own if len(own) == 1 else [own[-1], own[0]]
    names = _languages(rows)
    told = [f"{names[row.language]} {points(row.difference)} ({row.verdict})" for row in ends]
    return f"From the best, {told[0]}, to the worst, {told[1]}." if len(told) > 1 else f"{told[0]}."


def _estimate(row: Row, label: str) -> Estimate:
    value, low, high = (100 * float(one or 0.0) for one in (row.difference, row.low, row.high))
    return Estimate(label, value, low, high, KINDS[row.verdict], summary=row.kind != "language")


def _table(comparison: Comparison, caption: str, system: str, rows: Sequence[Row]) -> str:
    names, baseline = _languages(rows), comparison.baseline
    seeds = any(row.seed_low is not None for row in rows)
    header = ["language", "items", f"{baseline}, %", f"{system}, %", "difference", "95 % over items"]
    header += (["95 % over seeds"] if seeds else []) + ["p (Holm)", "verdict"]
    body = [
        [
            names[row.language] + ("" if row.language else f" but {_home(comparison)[1]}"),
            f"{row.items:,}",
            points(row.baseline, False),
            points(row.value, False),
            points(row.difference),
            interval(row.low, row.high),
            *([interval(row.seed_low, row.seed_high)] if seeds else []),
            number(row.p_adjusted, 3),
            row.verdict,
        ]
        for row in rows
    ]
    return table(caption, header, body, (0, len(header) - 1))


def _english(evaluated: Evaluated) -> list[str]:
    code, home = _home(evaluated.before or evaluated.comparison)
    made = [heading(f"{home} before and after")]
    if evaluated.before is None:
        return [
            *made,
            paragraph(
                f"The base was not among the evaluations, so what {home} was before is not known: score the base the "
                "runs name, and add it to --evaluation."
            ),
        ]
    english = [row for row in evaluated.before.rows if row.language == code and row.difference is not None]
    if not english:
        return [*made, paragraph(f"{home} was not scored.")]
    said = [
        f"{row.system} {points(row.value, False)} % after {points(row.baseline, False)} % on {row.benchmark} "
        f"({points(row.difference)} {interval(row.low, row.high)}: {row.verdict})"
        for row in english
    ]
    rows = [
        [
            row.system,
            str(row.benchmark),
            points(row.baseline, False),
            points(row.value, False),
            points(row.difference),
            interval(row.low, row.high),
            row.verdict,
        ]
        for row in english
    ]
    header = ["model", "benchmark", "before, %", "after, %", "change", "95 %", "verdict"]
    return [
        *made,
        paragraph(f"{home}: {'; '.join(said)}."),
        table(f"{home} against {evaluated.before.baseline}, the base", header, rows, (0, 1, 6)),
    ]
