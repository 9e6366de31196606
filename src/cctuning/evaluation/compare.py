"""Compare systems that `cctuning evaluate` scored, language by language.

A system is one run, or several that differ only in their training seed. Systems are compared item by item, which
removes the difficulty of the items from the difference; the seeds of a system are averaged for each item first. The
interval over items is for other items and the same models. The interval over seeds is for other trainings: if both
systems have the same number of seeds, at least two, runs are paired in the order given, and it is Student's t interval
of the paired differences. Holm's correction covers the languages of a benchmark, with the reference language, for each
system; means are single tests and not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cctuning.errors import UserError
from cctuning.evaluation.comparability import (
    check_same,
    check_seeds,
    common_tasks,
    reference_languages,
    system_notes,
    task_notes,
)
from cctuning.evaluation.result_tables import difference_text
from cctuning.evaluation.saved_results import ScoredRun, read_run
from cctuning.evaluation.statistics import clustered_bootstrap, holm, sign_flip_test, t_interval
from cctuning.languages import language_name

MIN_DRAWS = 1000
ALPHA = 0.05  # a difference is significant if its adjusted p-value is below
BASE = "base"  # name of the system that others are compared with by default
BETTER, WORSE, SAME, NOT_MEASURED = "better", "worse", "not distinguishable", "not measured"


@dataclass(frozen=True)
class Row:
    """One system against the baseline, in one language or on average. Figures are None if it is not measured."""

    system: str
    # `language`, `mean` (over a benchmark's languages except the reference languages) or `overall` (over all pairs of
    # benchmark and language except those, with equal weights)
    kind: str
    benchmark: str | None
    language: str | None
    languages: int = 1
    items: int = 0  # distinct ones: a question in several languages counts once
    baseline: float | None = None  # in [0, 1]
    value: float | None = None
    difference: float | None = None  # in [-1, 1]
    low: float | None = None  # 95 % interval over items
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    seed_low: float | None = None  # 95 % interval over seeds, None with too few seeds
    seed_high: float | None = None
    verdict: str = NOT_MEASURED


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`."""

    baseline: str
    systems: dict[str, list[dict[str, Any]]]  # name to a description of each run, baseline included
    settings: dict[str, Any]
    rows: list[Row]
    summary: list[str]
    notes: list[str]


def compare(runs: Sequence[tuple[str, Path]], baseline: str | None = None, draws: int = 10_000) -> Comparison:
    """Compare every system with the baseline, on the tasks that all runs have.

    Args:
        runs: (system, directory); directories with the same system are its training seeds.
        baseline: name of a system; default: `BASE`, else the first.
        draws: bootstrap and Monte Carlo draws, at least `MIN_DRAWS`.

    Raises:
        UserError: fewer than two systems, a run that is missing, damaged or unfinished, or runs with other items,
            prompts, task versions, main metrics or chat settings.
    """
    if draws < MIN_DRAWS:
        raise UserError(f"--draws {draws}: expected at least {MIN_DRAWS}; fewer give no stable interval.")
    base = _baseline(runs, baseline)
    loaded = [read_run(name, path) for name, path in runs]
    systems: dict[str, list[ScoredRun]] = {}
    for run in loaded:
        systems.setdefault(run.system, []).append(run)
    notes: list[str] = []
    check_seeds(systems)
    tasks = common_tasks(loaded, notes)
    check_same(loaded, tasks)
    left_out = reference_languages(loaded, notes)
    settings = {"draws": draws, "alpha": ALPHA, "level": 0.95, "tasks": tasks, "reference_languages": left_out}
    notes += [*system_notes(systems, base), *task_notes(systems, tasks, settings)]
    table = _table(loaded, tasks)
    members = {name: [place for place, run in enumerate(loaded) if run.system == name] for name in systems}
    rows: list[Row] = []
    summary: list[str] = []
    for name in systems:
        if name != base:
            found = _rows(name, table, members[base], members[name], settings)
            rows += found
            summary += _summary(name, base, found, left_out)
    described = {
        name: [{"directory": str(run.path), "mode": run.mode, **run.record["model"]} for run in own]
        for name, own in systems.items()
    }
    return Comparison(base, described, settings, rows, summary, notes)


def _baseline(runs: Sequence[tuple[str, Path]], wanted: str | None) -> str:
    names = list(dict.fromkeys(name for name, _ in runs))
    if len(names) < 2:
        raise UserError(f"{', '.join(names) or 'no run'}: expected two or more systems to compare; name another run.")
    if wanted is None:
        return BASE if BASE in names else names[0]
    if wanted not in names:
        raise UserError(f"--baseline {wanted}: none of the runs; expected one of {', '.join(names)}.")
    return wanted


def _table(runs: Sequence[ScoredRun], tasks: Sequence[str]) -> pd.DataFrame:
    """The scores, a row for each benchmark, language and item, a column for each run (its number)."""
    columns = []
    for run in runs:
        parts = {
            (run.about(name)["benchmark"], run.about(name)["language"]): run.items[name]["value"] for name in tasks
        }
        columns.append(pd.concat(parts, names=["benchmark", "language", "item"]))
    return pd.concat(columns, axis=1, keys=range(len(runs)))


def _rows(
    name: str, table: pd.DataFrame, first: list[int], second: list[int], settings: Mapping[str, Any]
) -> list[Row]:
    """The rows of a system whose runs are the columns `second` of `table`; those of the baseline are `first`."""

    def row(kind: str, benchmark: str | None, language: str | None, part: pd.DataFrame) -> Row:
        return _measured(Row(name, kind, benchmark, language), part[first], part[second], settings)

    rows: list[Row] = []
    left_out = settings["reference_languages"]
    others = table.drop(index=left_out, level="language", errors="ignore")
    for benchmark, own in table.groupby(level="benchmark", sort=False):
        languages = sorted(own.index.unique("language"), key=lambda language: language not in left_out)
        rows += [Row(name, "language", benchmark, language) for language in left_out if language not in languages]
        found = [row("language", benchmark, one, own.xs(one, level="language", drop_level=False)) for one in languages]
        rows += [_judged(row, p) for row, p in zip(found, holm([row.p or 0 for row in found]), strict=True)]
        kept = own.loc[own.index.isin(others.index)]
        if len(kept):
            mean = row("mean", benchmark, None, kept)
            rows.append(_judged(mean, mean.p))
    if len(others) and table.index.unique("benchmark").size > 1:
        overall = row("overall", None, None, others)
        rows.append(_judged(overall, overall.p))
    return rows


def _measured(row: Row, first: pd.DataFrame, second: pd.DataFrame, settings: Mapping[str, Any]) -> Row:
    """`row` with the mean difference of `second` from `first`, its intervals and its p-value. Both are rows of the
    table, with the columns of a system's seeds."""
    cells = [side.groupby(level=["benchmark", "language"]).mean() for side in (first, second)]
    seeds = [side.mean().to_numpy() for side in cells]
    # Of each benchmark [items, languages], NaN where a language lacks the item. In a parallel benchmark, the same id
    # is the same question. In others, drawing unrelated items together does no harm: they stay independent.
    differences = (second.mean(axis=1) - first.mean(axis=1)).unstack("language")
    matrices = [
        one.dropna(axis=1, how="all").to_numpy() for _, one in differences.groupby(level="benchmark", sort=False)
    ]
    interval = clustered_bootstrap(matrices, settings["draws"])
    # The contribution of each item to the mean, over all its languages: the unit whose sign is flipped.
    shares = [np.nansum(one / np.count_nonzero(~np.isnan(one), axis=0), axis=1) / len(cells[0]) for one in matrices]
    paired = t_interval(seeds[1] - seeds[0]) if len(seeds[0]) == len(seeds[1]) >= 2 else None
    return replace(
        row,
        languages=len(cells[0]),
        items=interval.n,
        baseline=float(seeds[0].mean()),
        value=float(seeds[1].mean()),
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p=sign_flip_test(np.concatenate(shares), settings["draws"]),
        seed_low=paired.low if paired else None,
        seed_high=paired.high if paired else None,
    )


def _judged(row: Row, p: float | None) -> Row:
    """`row` with its adjusted p-value and its verdict."""
    assert p is not None and row.difference is not None
    verdict = SAME if p >= ALPHA or row.difference == 0 else BETTER if row.difference > 0 else WORSE
    return replace(row, p_adjusted=p, verdict=verdict)


def _summary(name: str, base: str, rows: Sequence[Row], left_out: Sequence[str]) -> list[str]:
    """A sentence per benchmark, and one on the overall mean."""
    lines = []
    without = " and ".join(language_name(one) for one in left_out)
    for benchmark in dict.fromkeys(row.benchmark for row in rows if row.benchmark is not None):
        of = [row for row in rows if row.benchmark == benchmark]
        others = [row for row in of if row.kind == "language" and row.language not in left_out]
        parts = []
        for verdict in (BETTER, WORSE, SAME) if others else ():
            found = [language_name(str(row.language)) for row in others if row.verdict == verdict]
            total = f" of {len(others)} languages" if verdict == BETTER else ""
            named = f" ({', '.join(found)})" if found and verdict != SAME else ""
            parts.append(f"{verdict} in {len(found)}{total}{named}")
        told = ", ".join(parts) or f"no language but {without}"
        means = [f"mean {difference_text(row)}: {row.verdict}" for row in of if row.kind == "mean"]
        references = [row for row in of if row.kind == "language" and row.language in left_out]
        kept = [f"{language_name(str(row.language))} {difference_text(row)}: {row.verdict}" for row in references]
        lines.append(f"{name} against {base}, {benchmark}: {'; '.join([told, *means, *kept])}.")
    for row in rows:
        if row.kind == "overall":
            lines.append(
                f"{name} against {base}, overall without {without}: {difference_text(row)} points over "
                f"{row.languages} benchmark-language pairs: {row.verdict}."
            )
    return lines
