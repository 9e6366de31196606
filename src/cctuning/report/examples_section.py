"""The examples section: the first item of each task, answered by each model, from the samples of evaluations."""

from __future__ import annotations

import json
from typing import Any

from cctuning.languages import language_name
from cctuning.report.page import Section, example, paragraph, table
from cctuning.report.results_section import Evaluated

TASKS = 8
HEADER = ["model", "answer", "score"]


def examples_section(evaluated: Evaluated) -> Section:
    """The section."""
    section = Section("examples", "Examples")
    section.add(paragraph("The first item of each task, from the samples of the evaluations."))
    for number, task in enumerate(evaluated.comparison.settings["tasks"][:TASKS], 1):
        rows, samples = [], []
        for run in evaluated.runs:
            with (run.path / "samples" / f"{task}.jsonl").open(encoding="utf-8") as lines:
                sample = json.loads(next(lines))
            samples.append(sample)
            scores = ", ".join(f"{name} {value:g}" for name, value in sample["metrics"].items())
            rows.append([run.system, answer_text(sample["response"]), scores])
        code = evaluated.runs[0].tasks[task].language
        known = code if language_name(code) != code else None  # an unknown code would mislead a screen reader
        terms = [("prompt", samples[0]["prompt"], known), ("expected", str(samples[0]["target"]), known)]
        title = f"{number}. {language_name(code)}, {task}"
        answers = table(f"Answers to example {title}", HEADER, rows, range(len(HEADER)))
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
