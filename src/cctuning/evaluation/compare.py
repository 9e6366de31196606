"""Say whether scored systems differ, language by language, from the directories that `cctuning evaluate` wrote.

A system is one run, or several that differ in their training seed alone. Systems are compared item by item, which
takes the items' difficulty out of the difference; a system's seeds are averaged for each item first. That interval
says what other items of the kind would have given, with these very models. What another training would have given is
the seed-level interval's to say: where both systems have the same number of seeds, at least two, the runs are paired
in the order given and Student's t is taken over the paired differences. Holm's correction spans the languages of one
benchmark (the reference language too), for each system apart; a mean is one test and is not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cctuning.errors import UserError
from cctuning.evaluation.answer_language import compared
from cctuning.evaluation.samples import uniform_answers
from cctuning.evaluation.saved_results import ScoredRun, check_same, check_seeds, common_tasks, read_run
from cctuning.evaluation.statistics import (
    Array,
    Interval,
    clustered_bootstrap,
    holm,
    paired_bootstrap,
    sign_flip_test,
    t_interval,
)
from cctuning.languages import ENGLISH, language_name

MIN_DRAWS = 1000
FEW_ITEMS = 30  # below, a percentile interval is known to be too narrow
BETTER, WORSE, SAME, ABSENT = "better", "worse", "not distinguishable", "not measured"


@dataclass(frozen=True)
class Row:
    """One system against the baseline, in one language or on average. Values lie in [0, 1], differences in [-1, 1].

    `kind`: `language`; `mean` (of a benchmark's languages other than the reference); `overall` (of all
    benchmark-language pairs other than the reference's, each with the same weight). `items`: of a mean, distinct
    items: a question in several languages is one. Figures are None where the verdict is `not measured`; `seed_low` and
    `seed_high` also where there are too few seeds. Intervals are 95 %, whatever alpha is.
    """

    system: str
    kind: str
    benchmark: str | None
    language: str | None
    languages: int
    items: int
    baseline: float | None = None
    value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    seed_low: float | None = None
    seed_high: float | None = None
    verdict: str = ABSENT


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `systems`: name to what each of its runs was, in the order given, baseline included."""

    baseline: str
    systems: dict[str, list[dict[str, Any]]]
    settings: dict[str, Any]
    rows: list[Row]
    summary: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Cell:
    """One task of both systems: [seeds, items] each, and the items' ids."""

    benchmark: str
    language: str
    ids: list[int]
    first: Array
    second: Array

    @property
    def gains(self) -> Array:
        return np.asarray(self.second.mean(axis=0) - self.first.mean(axis=0))


def compare(
    runs: Sequence[tuple[str, Path]],
    baseline: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Comparison:
    """Compare every system with the baseline on the tasks that all runs have.

    Args:
        runs: (system, directory); directories with the same system are its training seeds.
        baseline: a system's name or one of its directories; default the first.
        draws: bootstrap and Monte Carlo draws, at least `MIN_DRAWS`.
        alpha: a difference is called real where its adjusted p-value lies below.

    Raises:
        UserError: fewer than two systems, a run that is missing, broken or unfinished, or runs that were not asked
            the same: other items, prompts, task version, main metric or chat setting, or no task in common.
    """
    if draws < MIN_DRAWS:
        raise UserError(f"--draws {draws}: expected at least {MIN_DRAWS}; fewer give no steady interval.")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more.")
    if not 0 < alpha < 1:
        raise UserError(f"--alpha {alpha}: expected a number between 0 and 1.")
    base = _baseline(runs, baseline)
    loaded = [read_run(name, path) for name, path in runs]
    systems: dict[str, list[ScoredRun]] = {}
    for run in loaded:
        systems.setdefault(run.system, []).append(run)
    notes: list[str] = []
    check_seeds(systems)
    tasks = common_tasks(loaded, notes)
    check_same(loaded, tasks)
    apart = _references(loaded, notes)
    _tell(systems, base, loaded, tasks, alpha, draws, notes)
    notes += _answers(systems, tasks)
    rows: list[Row] = []
    summary: list[str] = []
    for name, members in systems.items():
        if name != base:
            found = _system_rows(name, _cells(systems[base], members, tasks, apart), apart, draws, seed, alpha)
            rows += found
            summary += _words(name, base, found, apart)
    return Comparison(
        baseline=base,
        systems={
            name: [
                {"directory": str(run.path), "mode": run.record["settings"].get("mode"), **run.record["model"]}
                for run in members
            ]
            for name, members in systems.items()
        },
        settings={
            **{"draws": draws, "seed": seed, "alpha": alpha, "level": 0.95, "tasks": tasks},
            "reference_languages": apart,
        },
        rows=rows,
        summary=summary,
        notes=notes,
    )


def _answers(systems: Mapping[str, Sequence[ScoredRun]], tasks: Sequence[str]) -> list[str]:
    """Which languages the systems answered in, and whose answers are all empty or the same."""
    notes = []
    for task in tasks:
        abouts = {name: [run.tasks[task].about for run in members] for name, members in systems.items()}
        shares = {name: [about.get("answered_in") for about in one] for name, one in abouts.items()}
        said = compared(shares, task, str(next(iter(abouts.values()))[0]["language"]))
        notes += [said] if said is not None else []
        notes += [
            f"{name}: {said}" for name, one in abouts.items() for about in one for said in uniform_answers(task, about)
        ]
    return notes


def _baseline(runs: Sequence[tuple[str, Path]], wanted: str | None) -> str:
    names = list(dict.fromkeys(name for name, _ in runs))
    if len(names) < 2:
        raise UserError(f"{', '.join(names) or 'no run'}: expected two or more systems to compare; name another run.")
    if wanted is None:
        return names[0]
    if wanted in names:
        return wanted
    for name, path in runs:
        if path.resolve() == Path(wanted).resolve():
            return name
    raise UserError(f"--baseline {wanted}: none of the runs; expected one of {', '.join(names)}, or its directory.")


def _references(runs: Sequence[ScoredRun], notes: list[str]) -> list[str]:
    """The languages that stand apart from means: those that runs borrow from. A plain model says none, and agrees."""
    said = [(run.system, str(run.record["model"].get("reference_language") or "")) for run in runs]
    found = list(dict.fromkeys(language for _, language in said if language))
    if len(found) > 1:
        told = ", ".join(f"{name} {language}" for name, language in dict.fromkeys(said) if language)
        notes.append(f"reference languages differ: {told}; means are without all of these.")
    return found or [ENGLISH]


def _tell(
    systems: Mapping[str, Sequence[ScoredRun]],
    base: str,
    runs: Sequence[ScoredRun],
    tasks: Sequence[str],
    alpha: float,
    draws: int,
    notes: list[str],
) -> None:
    """Notes on what does not forbid the comparison and should be known."""
    modes = {name: members[0].record["settings"].get("mode") for name, members in systems.items()}
    if len(set(modes.values())) > 1:
        notes.append(f"modes differ: {', '.join(f'{name} {mode}' for name, mode in modes.items())}.")
    versions = [run.record.get("versions") or {} for run in runs]
    for package in dict.fromkeys(key for one in versions for key in one):
        found = list(dict.fromkeys(str(one.get(package)) for one in versions))
        if len(found) > 1:
            notes.append(f"versions of {package} differ: {', '.join(found)}.")
    single = [name for name, members in systems.items() if len(members) == 1]
    if single:
        notes.append(
            f"one training seed: {', '.join(single)}; what another training would give is not in the figures."
        )
    numbers = {
        name: [run.record["model"].get("training_seed") for run in members] for name, members in systems.items()
    }
    for name, own in numbers.items():
        if name == base or name in single or base in single:
            continue
        if len(own) != len(numbers[base]):
            notes.append(f"no seed-level interval for {name}: {len(own)} seeds, and {base} has {len(numbers[base])}.")
        elif own != numbers[base]:
            notes.append(f"seeds paired in the order given: {base} {numbers[base]}, {name} {own}.")
    few = [name for name in tasks if len(runs[0].tasks[name].items) < FEW_ITEMS]
    if few:
        notes.append(f"fewer than {FEW_ITEMS} items, so intervals are too narrow: {', '.join(few)}.")
    sizes = [sum(runs[0].tasks[name].benchmark == runs[0].tasks[other].benchmark for name in tasks) for other in tasks]
    if max(sizes) / (draws + 1) >= alpha:
        notes.append(f"too few draws for {max(sizes)} languages to fall below alpha {alpha}; raise --draws.")
    metrics = list(dict.fromkeys(str(runs[0].tasks[name].about["metric"]) for name in tasks))
    if len(metrics) > 1:
        notes.append(f"the overall mean mixes metrics: {', '.join(metrics)}.")


def _cells(
    first: Sequence[ScoredRun], second: Sequence[ScoredRun], tasks: Sequence[str], apart: Sequence[str]
) -> list[_Cell]:
    """One a task, benchmarks in the runs' order, in each the languages `apart` first."""
    cells = []
    for name in tasks:
        task = first[0].tasks[name]
        ids = sorted(task.items)
        values = [np.array([[run.tasks[name].items[i][2] for i in ids] for run in side]) for side in (first, second)]
        cells.append(_Cell(task.benchmark, task.language, ids, values[0], values[1]))
    order = list(dict.fromkeys(cell.benchmark for cell in cells))
    return sorted(cells, key=lambda cell: (order.index(cell.benchmark), cell.language not in apart))


def _system_rows(
    name: str, cells: Sequence[_Cell], apart: Sequence[str], draws: int, seed: int, alpha: float
) -> list[Row]:
    rows: list[Row] = []
    groups: dict[str, list[_Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.benchmark, []).append(cell)
    for benchmark, members in groups.items():
        ps = [sign_flip_test(cell.gains, draws, seed) for cell in members]
        measured = {cell.language for cell in members}
        rows += [Row(name, "language", benchmark, one, 1, 0) for one in apart if one not in measured]
        for cell, p, adjusted in zip(members, ps, holm(ps), strict=True):
            interval = paired_bootstrap(cell.first.mean(axis=0), cell.second.mean(axis=0), draws, seed)
            rows.append(_row(name, "language", benchmark, cell.language, [cell], interval, p, adjusted, alpha))
        rows += _mean_row(name, "mean", benchmark, {benchmark: members}, apart, draws, seed, alpha)
    if len(groups) > 1:
        rows += _mean_row(name, "overall", None, groups, apart, draws, seed, alpha)
    return rows


def _mean_row(
    name: str,
    kind: str,
    benchmark: str | None,
    groups: Mapping[str, Sequence[_Cell]],
    apart: Sequence[str],
    draws: int,
    seed: int,
    alpha: float,
) -> list[Row]:
    """The mean over languages other than those `apart`, or nothing where there is none."""
    kept = [[cell for cell in members if cell.language not in apart] for members in groups.values()]
    kept = [members for members in kept if members]
    if not kept:
        return []
    matrices = [_by_item(members) for members in kept]
    columns = sum(matrix.shape[1] for matrix in matrices)
    # What each item adds to the mean, all its languages together: the units whose sign may be flipped.
    shares = [np.nansum(one / np.count_nonzero(~np.isnan(one), axis=0), axis=1) / columns for one in matrices]
    p = sign_flip_test(np.concatenate(shares), draws, seed)
    interval = clustered_bootstrap(matrices, draws, seed)
    flat = [cell for members in kept for cell in members]
    return [_row(name, kind, benchmark, None, flat, interval, p, p, alpha)]


def _by_item(cells: Sequence[_Cell]) -> Array:
    """[ids, languages] differences, NaN where a language lacks the id.

    The same id is the same question in a row-parallel benchmark. Where it is not, drawing unrelated items together
    does no harm: they are as independent within a row as between rows.
    """
    ids = {key: place for place, key in enumerate(sorted({key for cell in cells for key in cell.ids}))}
    matrix = np.full((len(ids), len(cells)), math.nan)
    for column, cell in enumerate(cells):
        matrix[[ids[key] for key in cell.ids], column] = cell.gains
    return matrix


def _row(
    name: str,
    kind: str,
    benchmark: str | None,
    language: str | None,
    cells: Sequence[_Cell],
    interval: Interval,
    p: float,
    adjusted: float,
    alpha: float,
) -> Row:
    first = np.mean([cell.first.mean(axis=1) for cell in cells], axis=0)  # [seeds]
    second = np.mean([cell.second.mean(axis=1) for cell in cells], axis=0)
    paired = len(first) == len(second) and len(first) >= 2
    seeds = t_interval(second - first) if paired else None
    real = adjusted < alpha and interval.value != 0
    return Row(
        system=name,
        kind=kind,
        benchmark=benchmark,
        language=language,
        languages=len(cells),
        items=interval.n,
        baseline=float(first.mean()),
        value=float(second.mean()),
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p=p,
        p_adjusted=adjusted,
        seed_low=seeds.low if seeds else None,
        seed_high=seeds.high if seeds else None,
        verdict=(BETTER if interval.value > 0 else WORSE) if real else SAME,
    )


def _words(name: str, base: str, rows: Sequence[Row], apart: Sequence[str]) -> list[str]:
    lines = []
    but = " and ".join(language_name(one) for one in apart)
    for benchmark in dict.fromkeys(row.benchmark for row in rows if row.benchmark is not None):
        own = [row for row in rows if row.benchmark == benchmark and row.kind == "language"]
        verdicts = {str(row.language): row.verdict for row in own}
        kept = "; ".join(f"{language_name(one)}: {verdicts[one]}" for one in apart)
        others = [row for row in own if row.language not in apart]
        parts = []
        for verdict in (BETTER, WORSE, SAME):
            found = [str(row.language) for row in others if row.verdict == verdict]
            of = f" of {len(others)} languages" if verdict == BETTER else ""
            named = f" ({', '.join(found)})" if found and verdict != SAME else ""
            parts.append(f"{verdict} in {len(found)}{of}{named}")
        told = ", ".join(parts) if others else f"no language but {but}"
        lines.append(f"{name} against {base}, {benchmark}: {told}; {kept}.")
    for row in rows:
        if row.kind == "overall":
            lines.append(
                f"{name} against {base}, overall without {but}: {difference_text(row)} points over {row.languages} "
                f"benchmark-language pairs: {row.verdict}."
            )
    return lines


def difference_text(row: Row) -> str:
    return span(row.difference, row.low, row.high)


def span(value: float | None, low: float | None, high: float | None) -> str:
    """A difference and its interval in points, as tables and sentences show them."""
    if low is None or high is None:
        return "-"
    span = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    return span if value is None else f"{100 * value:+.1f} {span}"
