"""The examples section: answers of each model to the same prompts, generated live or from evaluation samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def _example(title: str, texts: Sequence[tuple[str, Any, str]], header: list[str], answers: list[list[str]]) -> Markup:
    """One example. `texts`: name, text or messages (None: left out), and language code of each."""
    terms = []
    for name, text, code in texts:
        if isinstance(text, list):
            text = "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in text)
        if text is not None:
            known = language_name(code) != code  # an unknown code would mislead a screen reader
            terms.append((name, str(text), code if known else None))
    return example(title, terms, table(f"Answers to example {title}", header, answers, range(len(header))))


def _live(number: int, one: Example, reference: str) -> Markup:
    expected = None if one.expected is None else one.expected.strip()
    texts = [("prompt", one.prompt, one.language), ("reference prompt", one.reference, reference)]
    rows = [[model, text] for model, text in one.answers.items()]
    return _example(
        f"{number}. {language_name(one.language)}",
        [*texts, ("expected", expected, one.language)],
        ["model", "answer"],
        rows,
    )


def _samples(evaluated: Evaluated) -> list[Markup]:
    made = []
    for number, task in enumerate(evaluated.comparison.settings["tasks"][:FROM_SAMPLES], 1):
        language, rows, first = evaluated.runs[0].tasks[task].language, [], None
        for run in evaluated.runs:
            with (run.path / "samples" / f"{task}.jsonl").open(encoding="utf-8") as lines:
                sample = json.loads(next(lines))
            first = first or sample
            scores = ", ".join(f"{name} {value:g}" for name, value in sample["metrics"].items())
            rows.append([run.system, answer_text(sample["response"]), scores])
        assert first is not None
        texts = [("prompt", first["prompt"], language), ("expected", first["target"], language)]
        made.append(
            _example(f"{number}. {language_name(language)}, {task}", texts, ["model", "answer", "score"], rows)
        )
    return made


def answer_text(response: Any) -> str:
    """The text that a model generated, or its most likely choice."""
    if isinstance(response, dict):
        return str(response["said"])
    best = max(range(len(response)), key=lambda place: response[place]["loglikelihood"])
    choices = [one["choice"].strip() for one in response]
    if choices.count(choices[best]) > 1:  # the contexts differ, and the samples keep only the first one's
        return f"{choices[best]} (choice {best + 1} of {len(choices)})"
    return str(choices[best])
