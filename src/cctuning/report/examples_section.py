"""The same prompt answered by each model: generated while the models were at hand, or out of evaluation samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from cctuning.languages import language_name
from cctuning.report.model_analysis import ANSWER_TOKENS, Example, Findings
from cctuning.report.page import Section, paragraph, table
from cctuning.report.results_section import Evaluated

FROM_SAMPLES = 8


def examples(found: Findings | None, evaluated: Evaluated | None, reference: str) -> Section:
    """The examples section; it says how they were chosen. `reference`: the language of the parallels."""
    section = Section("examples", "Examples")
    if found is not None and found.examples:
        says = (
            f"Greedy answers of at most {ANSWER_TOKENS} tokens to rows chosen by their place in the file, one "
            "language after the other."
        )
        if not found.rows.held_out:
            says += " They are rows the first run was trained on."
        section.add(paragraph(says), *(_live(place, one, reference) for place, one in enumerate(found.examples, 1)))
    elif evaluated is not None:
        section.add(
            paragraph("From the evaluations' samples: the first item of each task that all have."),
            *_samples(evaluated),
        )
    else:
        section.add(paragraph("None: give --examples N to have N prompts answered by each model, or --evaluation."))
    return section


def plain_text(text: Any) -> str:
    """A text, or messages as `role: content` lines."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in text or [])


def _term(name: str, text: str, language: str) -> str:
    known = language_name(language) != language  # a code nobody knows would mislead a screen reader
    lang = f' lang="{escape(language)}"' if known else ""
    return f'<dt>{escape(name)}</dt><dd dir="auto"{lang}>{escape(text)}</dd>'


def _article(title: str, terms: Sequence[str], answers: str) -> str:
    return f'<article class="example"><h3>{escape(title)}</h3><dl>{"".join(terms)}</dl>{answers}</article>'


def _live(place: int, one: Example, reference: str) -> str:
    name = language_name(one.language)
    terms = [
        _term("prompt", plain_text(one.prompt), one.language),
        _term("parallel", plain_text(one.reference), reference),
    ]
    if one.expected is not None:
        terms.append(_term("expected", one.expected.strip(), one.language))
    rows = [
        [who, text, *([] if one.expected is None else ["yes" if text.strip() == one.expected.strip() else "no"])]
        for who, text in one.answers.items()
    ]
    header = ["model", "answer", *([] if one.expected is None else ["as expected"])]
    return _article(f"{place}. {name}", terms, table(f"Answers to example {place}", header, rows, (0, 1, 2)))


def _samples(evaluated: Evaluated) -> list[str]:
    seen: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    languages: dict[str, str] = {}
    for run in evaluated.runs:
        for task in evaluated.comparison.settings["tasks"][:FROM_SAMPLES]:
            with (run.path / "samples" / f"{task}.jsonl").open(encoding="utf-8") as lines:
                seen.setdefault(task, []).append((run.system, json.loads(next(lines))))
            languages[task] = run.tasks[task].language
    made = []
    for place, (task, answers) in enumerate(seen.items(), 1):
        first, language = answers[0][1], languages[task]
        terms = [_term("prompt", plain_text(first.get("prompt")), language)]
        terms.append(_term("expected", str(first.get("target")), language))
        rows = [[name, said(sample.get("response")), _figures(sample.get("metrics"))] for name, sample in answers]
        answer_table = table(f"Answers to {task}", ["model", "answer", "score"], rows, (0, 1, 2))
        made.append(_article(f"{place}. {language_name(language)}, {task}", terms, answer_table))
    return made


def said(response: Any) -> str:
    """What a model answered: the text it generated, or the choice it found likeliest."""
    if isinstance(response, dict):
        return str(response.get("said", ""))
    if isinstance(response, list) and response:
        best = max(range(len(response)), key=lambda place: response[place].get("loglikelihood", float("-inf")))
        choices = [str(one.get("choice", "")).strip() for one in response]
        if choices.count(choices[best]) > 1:  # they differ in what stands before them, of which the first's is kept
            return f"{choices[best]} (choice {best + 1} of {len(choices)})"
        return choices[best]
    return str(response)


def _figures(metrics: Any) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items()) if isinstance(metrics, dict) else ""
