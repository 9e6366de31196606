"""The examples section: answers of each model to the same prompts, generated live or from evaluation samples."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from cctuning.languages import language_name
from cctuning.report.model_analysis import ANSWER_TOKENS, Example, Findings
from cctuning.report.page import Section, example, paragraph, table
from cctuning.report.results_section import Evaluated

FROM_SAMPLES = 8


def examples_section(found: Findings | None, evaluated: Evaluated | None, reference: str) -> Section:
    """The section. `reference`: code of the reference language."""
    section = Section("examples", "Examples")
    if found is not None and found.examples:
        text = (
            f"Greedy answers of at most {ANSWER_TOKENS} tokens. Rows were chosen by their position in the file alone, "
            "one language after the other."
        )
        if not found.rows.held_out:
            text += " The first run was trained on them."
        section.add(paragraph(text), *(_live(number, one, reference) for number, one in enumerate(found.examples, 1)))
    elif evaluated is not None:
        section.add(paragraph("The first item of each task, from the samples of the evaluations."))
        section.add(*_samples(evaluated))
    else:
        section.add(paragraph("None: use --examples N to have each model answer N prompts, or --evaluation."))
    return section


def prompt_text(prompt: Any) -> str:
    """A prompt as text; messages as `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt or [])


def _term(name: str, text: str, language: str) -> tuple[str, str, str | None]:
    known = language_name(language) != language  # an unknown code would mislead a screen reader
    return name, text, language if known else None


def _live(number: int, one: Example, reference: str) -> Markup:
    expected = one.expected.strip() if one.expected is not None else None
    terms = [
        _term("prompt", prompt_text(one.prompt), one.language),
        _term("reference prompt", prompt_text(one.reference), reference),
        *([] if expected is None else [_term("expected", expected, one.language)]),
    ]
    header = ["model", "answer", *([] if expected is None else ["as expected"])]
    rows = [
        [model, text, *([] if expected is None else ["yes" if text.strip() == expected else "no"])]
        for model, text in one.answers.items()
    ]
    answers = table(f"Answers to example {number}", header, rows, (0, 1, 2))
    return example(f"{number}. {language_name(one.language)}", terms, answers)


def _samples(evaluated: Evaluated) -> list[Markup]:
    made = []
    for number, task in enumerate(evaluated.comparison.settings["tasks"][:FROM_SAMPLES], 1):
        samples = []
        for run in evaluated.runs:
            with (run.path / "samples" / f"{task}.jsonl").open(encoding="utf-8") as lines:
                samples.append((run.system, json.loads(next(lines))))
        language, first = evaluated.runs[0].tasks[task].language, samples[0][1]
        terms = [
            _term("prompt", prompt_text(first.get("prompt")), language),
            _term("expected", str(first.get("target")), language),
        ]
        rows = [[name, answer_text(one.get("response")), _scores(one.get("metrics"))] for name, one in samples]
        answers = table(f"Answers to {task}", ["model", "answer", "score"], rows, (0, 1, 2))
        made.append(example(f"{number}. {language_name(language)}, {task}", terms, answers))
    return made


def answer_text(response: Any) -> str:
    """The text that a model generated, or its most likely choice."""
    if isinstance(response, dict):
        return str(response.get("said", ""))
    if isinstance(response, list) and response:
        best = max(range(len(response)), key=lambda place: response[place].get("loglikelihood", float("-inf")))
        choices = [str(one.get("choice", "")).strip() for one in response]
        if choices.count(choices[best]) > 1:  # the contexts differ, and the samples keep only the first one's
            return f"{choices[best]} (choice {best + 1} of {len(choices)})"
        return choices[best]
    return str(response)


def _scores(metrics: Any) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items()) if isinstance(metrics, dict) else ""
