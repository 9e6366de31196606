"""Translate prompts into parallels, and whole rows into a language.

Rows are processed in chunks, because translators batch many texts better than one; order is kept. A row that cannot be
made gets the engine's reason as its problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from cctuning.data.schema import Message, Text, as_messages
from cctuning.data.text import flat
from cctuning.errors import UserError
from cctuning.pairing.candidates import Candidate, Candidates, Problem
from cctuning.pairing.translation import Translator

CHUNK = 5000  # rows in memory at once


def translate_prompts(rows: Candidates, translator: Translator, language: str) -> Candidates:
    """Translate each prompt into its parallel; rows in the reference language stay as they are."""
    while chunk := list(islice(rows, CHUNK)):
        foreign = [row for row in chunk if not row.problems and row.lang != language]
        for lang in sorted({row.lang for row in foreign}):
            own = [row for row in foreign if row.lang == lang]
            for row, text in translated(own, [row.prompt for row in own], translator, lang, language):
                row.reference = text
        yield from chunk


def translate_rows(rows: Candidates, translator: Translator, language: str, into: Sequence[str]) -> Candidates:
    """Translate prompt and response of rows in the reference language; the original row is the parallel."""
    while chunk := list(islice(rows, CHUNK)):
        good = [row for row in chunk if not row.problems]
        yield from (row for row in chunk if row.problems)
        for row in good:
            if row.lang != language:
                raise UserError(f"{row.origin}: lang is {row.lang}; way: translation starts from rows in {language}.")
        for lang in into:
            made = [
                replace(
                    row, lang=lang, reference=row.prompt, reference_response=row.response, thinking=None, problems=[]
                )
                for row in good
            ]
            for row, prompt in translated(made, [row.prompt for row in made], translator, language, lang):
                row.prompt = prompt
            answered = [row for row in made if row.response is not None and not row.problems]
            responses = [row.response or "" for row in answered]
            for row, response in translated(answered, responses, translator, language, lang):
                row.response = flat(response)
            for row, source in zip(made, good, strict=True):
                row.record = source.as_row(language) if row.problems else None
                yield row


def translated(
    rows: Iterable[Candidate], texts: Sequence[Text], translator: Translator, source: str, target: str
) -> Iterator[tuple[Candidate, Text]]:
    """Each row with the translation of its text, messages one by one; a row whose text has none gets a problem.

    What tools answered, tool calls and names stay as they are; thinking is left out.
    """
    asked = [[turn["content"] for turn in as_messages(text) if turn["role"] != "tool"] for text in texts]
    done = translator.translate([part for parts in asked for part in parts], source, target)
    for row, text, parts in zip(rows, texts, asked, strict=True):
        answers = list(islice(done, len(parts)))
        problem = next((answer.problem for answer in answers if answer.text is None), None)
        if problem:
            row.problems.append(Problem("translation", problem))
            continue
        contents = (str(answer.text) for answer in answers)
        yield row, next(contents) if isinstance(text, str) else [_with_content(turn, contents) for turn in text]


def _with_content(turn: Message, contents: Iterator[str]) -> Message:
    """A turn with the next of the translated contents, unless it is a tool's."""
    content = turn["content"] if turn["role"] == "tool" else next(contents)
    return {**{key: value for key, value in turn.items() if key != "thinking"}, "content": content}
