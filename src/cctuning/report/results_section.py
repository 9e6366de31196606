"""The sections made of evaluations: differences from the baseline, and an example of each task."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cctuning.evaluation.compare import BASE, BETTER, SAME, WORSE, Comparison, Row, compare
from cctuning.evaluation.result_tables import difference_text, table_cells
from cctuning.evaluation.saved_results import ScoredRun, parse_runs, read_run
from cctuning.languages import language_name
from cctuning.report.charts import forest
from cctuning.report.page import (
    Section,
    bullets,
    example,
    heading,
    language_names,
    listed,
    number,
    paragraph,
    points,
    side_by_side,
    table,
)
from cctuning.report.runs import Run
from cctuning.report.training_section import cost

TASKS = 8  # in the section of examples
EXAMPLE = ["model", "answer", "score"]
KINDS = {BETTER: "better", WORSE: "worse", SAME: "same"}


@dataclass(frozen=True)
class Evaluated:
    """Evaluations and their comparison."""

    runs: list[ScoredRun]
    comparison: Comparison
    base: str | None  # name of the evaluation of the runs' base, if there is one
    before: Comparison | None  # the same evaluations compared with the base


def read_evaluations(arguments: Sequence[str], baseline: str | None, runs: Sequence[Run]) -> Evaluated | None:
    """Read and compare the directories of `cctuning evaluate`; None without any."""
    if not arguments:
        return None
    named = parse_runs(arguments)
    found = compare(named, baseline)
    scored = [read_run(name, path) for name, path in named]
    bases = {_absolute(run.base) for run in runs}
    named_so = (run.system for run in scored if _absolute(str(run.record["model"].get("name"))) in bases)
    base = next(named_so, BASE if BASE in found.systems else None)
    before = found if base == found.baseline else compare(named, base) if base is not None else None
    return Evaluated(scored, found, base, before)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def results_section(runs: Sequence[Run], evaluated: Evaluated | None) -> Section:
    """The section."""
    section = Section("results", "Results")
    if evaluated is None:
        section.add(
            paragraph(
                "No evaluation was given, so this page cannot tell which languages improved. Score the runs, the "
                "baseline and the base with cctuning evaluate, and name the directories with --evaluation.",
                "answer",
            )
        )
    else:
        section.add(*_differences(evaluated), *_before_and_after(evaluated))
    return section.add(heading("Cost"), *cost(runs))


def _differences(evaluated: Evaluated) -> list[Markup]:
    comparison = evaluated.comparison
    figures = []
    for system in comparison.systems:
        measured = [row for row in comparison.rows if row.system == system and row.difference is not None]
        for benchmark in dict.fromkeys(row.benchmark for row in measured if row.benchmark):
            rows = [row for row in measured if row.benchmark == benchmark]
            names: dict[str | None, str] = {None: f"mean of {rows[-1].languages}"}
            names.update(language_names(row.language for row in rows if row.language))
            ordered = sorted(
                (row for row in rows if row.language), key=lambda row: row.difference or 0.0, reverse=True
            )
            told = [f"{names[row.language]} {points(row.difference)} ({row.verdict})" for row in ordered]
            text = f"From {told[0]} to {told[-1]}." if len(told) > 1 else f"{told[0]}."
            title = f"{system} against {comparison.baseline}, {benchmark}: difference in points"
            estimates = [(names[row.language], *_in_points(row), KINDS[row.verdict]) for row in rows]
            header, body = table_cells(comparison, rows)
            body = [[names[row.language], *cells[2:]] for row, cells in zip(rows, body, strict=True)]
            cells = table(title, header[1:], body, (0, len(header) - 2))
            x = "points, with 95 % interval over items"
            figures.append(forest(f"{system}, {benchmark}", text, title, estimates, x, cells))
    ours = [line for line in comparison.summary if not line.startswith(f"{evaluated.base} against ")]
    key = (
        "Triangle up: better; triangle down: worse (p below "
        f"{number(comparison.settings['alpha'])} after Holm's correction); ring: not distinguishable. "
        f"Means leave out {listed([language_name(code) for code in comparison.settings['reference_languages']])}."
    )
    return [
        *(paragraph(_with_minus(line), "answer") for line in ours),
        heading(f"Against {comparison.baseline}, by language"),
        paragraph(key),
        side_by_side(figures),
        *([bullets(f"Note: {note}" for note in comparison.notes)] if comparison.notes else []),
    ]


def _in_points(row: Row) -> tuple[float, float, float]:
    value, low, high = (100 * float(one or 0.0) for one in (row.difference, row.low, row.high))
    return value, low, high


def _before_and_after(evaluated: Evaluated) -> list[Markup]:
    code = str((evaluated.before or evaluated.comparison).settings["reference_languages"][0])
    name = language_name(code)
    title = heading(f"{name} before and after")
    if evaluated.before is None:
        text = f"The evaluations do not include the base, so {name} before training is unknown: score the base too."
        return [title, paragraph(text)]
    rows = [row for row in evaluated.before.rows if row.language == code and row.difference is not None]
    if not rows:
        return [title, paragraph(f"{name} was not scored.")]
    told = [
        f"{row.system} {points(row.value, False)} % after {points(row.baseline, False)} % on {row.benchmark} "
        f"({difference_text(row)}: {row.verdict})"
        for row in rows
    ]
    return [title, paragraph(_with_minus(f"{name}: {'; '.join(told)}."))]


def _with_minus(text: str) -> str:
    """Text with minus signs before negative numbers, as in charts."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def examples_section(evaluated: Evaluated) -> Section:
    """The first item of each task, answered by each model, from the samples of the evaluations."""
    section = Section("examples", "Examples")
    tasks = evaluated.comparison.settings["tasks"]
    which = "each task" if len(tasks) <= TASKS else f"{TASKS} of {len(tasks)} tasks"
    section.add(paragraph(f"The first item of {which}, from the samples of the evaluations."))
    for place, task in enumerate(tasks[:TASKS], 1):
        rows, samples = [], []
        for run in evaluated.runs:
            with (run.path / "samples" / f"{task}.jsonl").open(encoding="utf-8") as lines:
                sample = json.loads(next(lines))
            samples.append(sample)
            scores = ", ".join(f"{name} {value:g}" for name, value in sample["metrics"].items())
            rows.append([run.system, answer_text(sample["response"]), scores])
        code = evaluated.runs[0].about(task)["language"]
        known = code if language_name(code) != code else None  # an unknown code would mislead a screen reader
        terms = [("prompt", samples[0]["prompt"], known), ("expected", str(samples[0]["target"]), known)]
        title = f"{place}. {language_name(code)}, {task}"
        answers = table(f"Answers to example {place}", EXAMPLE, rows, range(len(EXAMPLE)))
        section.add(example(title, terms, answers))
    return section


def answer_text(response: Any) -> str:
    """The text that a model generated, or its most likely choice."""
    if isinstance(response, dict):
        return str(response["said"])
    best = max(range(len(response)), key=lambda place: response[place]["loglikelihood"])
    choices = [one["choice"].strip() for one in response]
    if choices.count(choices[best]) > 1:  # the contexts differ, and the samples keep only the first one's
        return f"{choices[best]} (choice {best + 1} of {len(choices)})"
    return str(choices[best])
