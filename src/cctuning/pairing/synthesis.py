"""Synthetic rows: translate prompts, translate whole rows, distil responses from a teacher model.

Rows are processed in chunks, because translators batch many texts better than one; order is kept. A row that cannot be
made is rejected with the engine's reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from cctuning.data.schema import Message, Text
from cctuning.data.text import flat
from cctuning.errors import UserError
from cctuning.pairing.candidates import Candidate, Outcome, Problem, Rejected
from cctuning.pairing.translation import Answer, Translator

if TYPE_CHECKING:
    from cctuning.pairing.translation.chat_client import ChatClient

CHUNK = 5000  # rows in memory at once


def chunks(rows: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Lists of `CHUNK` rows."""
    rest = iter(rows)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def translate_prompts(rows: Iterable[Outcome], translator: Translator, language: str) -> Iterator[Outcome]:
    """Translate each prompt into its parallel; rows in the reference language stay as they are."""
    for chunk in chunks(rows):
        by_lang: dict[str, list[int]] = {}
        for place, row in enumerate(chunk):
            if isinstance(row, Candidate) and row.lang != language:
                by_lang.setdefault(row.lang, []).append(place)
        for lang, places in by_lang.items():
            made = _translated([_candidate(chunk, place).prompt for place in places], translator, lang, language)
            for place, text in zip(places, made, strict=True):
                row = _candidate(chunk, place)
                if isinstance(text, Problem):
                    chunk[place] = Rejected.by(text, row, language)
                else:
                    chunk[place] = replace(row, reference=text)
        yield from chunk


def translate_rows(
    rows: Iterable[Outcome], translator: Translator, language: str, into: Sequence[str]
) -> Iterator[Outcome]:
    """Translate prompt and response of rows in the reference language; the original row is the parallel."""
    for chunk in chunks(rows):
        good = [row for row in chunk if isinstance(row, Candidate)]
        yield from (row for row in chunk if isinstance(row, Rejected))
        for row in good:
            if row.lang != language:
                raise UserError(f"{row.origin}: lang is {row.lang}; way: translation starts from rows in {language}.")
        for lang in into:
            texts: list[Text] = []
            for row in good:
                texts += [row.prompt, *([row.response] if row.response is not None else [])]
            made = _translated(texts, translator, language, lang)
            for row in good:
                prompt, response = next(made), next(made) if row.response is not None else None
                if isinstance(prompt, Problem) or isinstance(response, Problem):
                    problem = prompt if isinstance(prompt, Problem) else response
                    assert isinstance(problem, Problem)
                    yield Rejected.by(problem, row, language)
                    continue
                answer = None if response is None else flat(response)
                english = replace(row, reference=row.prompt, reference_response=row.response)
                yield replace(english, lang=lang, prompt=prompt, response=answer, thinking=None)


def distil(
    rows: Iterable[Outcome], teacher: ChatClient, translator: Translator | None, language: str
) -> Iterator[Outcome]:
    """Replace each response by the teacher's answer.

    Args:
        rows: with their parallels.
        teacher: the endpoint; if it serves the model that will be trained, this is self-distillation.
        translator: if given, the teacher answers the parallel and its answer is translated into the row's language.
        language: of the parallels.
    """
    for chunk in chunks(rows):
        good = [row for row in chunk if isinstance(row, Candidate)]
        yield from (row for row in chunk if isinstance(row, Rejected))
        asked = [row.prompt if translator is None or row.reference is None else row.reference for row in good]
        answers = [
            answer.text if answer.text is not None else Problem("teacher", answer.problem or "no answer")
            for answer in teacher.complete([_conversation(text) for text in asked])
        ]
        yield from _answered(good, answers, translator, language)


def _answered(
    rows: list[Candidate], answers: list[str | Problem], translator: Translator | None, language: str
) -> Iterator[Outcome]:
    made: list[Text | Problem] = list(answers)
    if translator is not None:
        for lang in sorted({row.lang for row in rows} - {language}):
            places = [n for n, row in enumerate(rows) if row.lang == lang and isinstance(answers[n], str)]
            translated = _translated([str(answers[place]) for place in places], translator, language, lang)
            for place, text in zip(places, translated, strict=True):
                made[place] = text
    for row, answer, response in zip(rows, answers, made, strict=True):
        if isinstance(response, Problem):
            yield Rejected.by(response, row, language)
        else:
            english = str(answer) if translator is not None and row.reference is not None else row.reference_response
            yield replace(row, response=flat(response), reference_response=english, thinking=None, calls=None)


def _translated(texts: Sequence[Text], translator: Translator, source: str, target: str) -> Iterator[Text | Problem]:
    """The translation of each text; messages are translated one by one."""
    parts = [part for text in texts for part in ([text] if isinstance(text, str) else [m["content"] for m in text])]
    done = translator.translate(parts, source, target)
    for text in texts:
        if isinstance(text, str):
            yield _or_problem(next(done))
            continue
        contents = [_or_problem(next(done)) for _ in text]
        problem = next((content for content in contents if isinstance(content, Problem)), None)
        yield problem or [{"role": m["role"], "content": str(c)} for m, c in zip(text, contents, strict=True)]


def _or_problem(done: Answer) -> str | Problem:
    return done.text if done.text is not None else Problem("translation", done.problem or "no translation")


def _conversation(text: Text) -> list[Message]:
    return text if isinstance(text, list) else [{"role": "user", "content": text}]


def _candidate(chunk: list[Outcome], place: int) -> Candidate:
    row = chunk[place]
    assert isinstance(row, Candidate)
    return row
