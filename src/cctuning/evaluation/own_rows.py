"""A user's own held-out rows as tasks, one a language: any file that `train` reads.

Prompts are asked as training renders them and answers generated, greedily; F1 and exact match are those of the
question-answering benchmarks (`metrics.py`). Item i of a language is its i-th row in the file, so that two models'
answers pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from cctuning.data import Encoder, load_rows
from cctuning.data.chat import split_thinking
from cctuning.errors import UserError
from cctuning.evaluation.row_tasks import row_task
from cctuning.evaluation.suites import Item
from cctuning.files import file_hash
from cctuning.languages import ENGLISH, language_name

LONG_ANSWER = 256  # tokens, where a response has more than one line


def own_items(
    path: str, languages: Sequence[str] | None, reference: str = ENGLISH, encoder: Encoder | None = None
) -> tuple[list[Item], list[str]]:
    """The tasks `rows_<language>`, the reference language first, and notes on what is left out.

    Args:
        path: a file or directory of rows, or a hub data set.
        languages: codes to keep; None for all. The reference language is always kept.
        reference: the language that the rows' parallels are in; its code also names their column (`prompt_en`).
        encoder: renders prompts as training does; None: as they stand.

    Raises:
        UserError: it cannot be read, has no row with a response, or no row of a language that is named.
    """
    dataset, report = load_rows([path], reference_language=reference, require_reference=False)
    by_language: dict[str, list[dict[str, Any]]] = {}
    silent = 0
    for row in dataset:
        answer = split_thinking(row["response"] or "")[1].strip()
        if not answer:
            silent += 1
            continue
        text = {side: _text(row, side, encoder) for side in ("prompt", "reference") if row[side] is not None}
        own = by_language.setdefault(row["lang"], [])
        own.append({"id": len(own), "answer": answer, "reference": None, **text})
    if not by_language:
        raise UserError(f"--rows {path}: no row has a response; there is nothing to score answers against.")
    for wanted in languages or ():
        if wanted not in by_language:
            raise UserError(
                f"--languages: no row of {path} is in {wanted!r}; it has {', '.join(sorted(by_language))}."
            )
    kept = [lang for lang in by_language if languages is None or lang in {*languages, reference}]
    notes = [*report.notes, *([f"{path}: {silent} rows without a response are left out."] if silent else [])]
    if reference not in by_language:
        name = language_name(reference)
        notes.append(f"{path} has no row in {name}: what tuning costs {name} is not seen.")
    kept.sort(key=lambda lang: (lang != reference, lang))
    rendered = encoder is not None and encoder.chat
    return [_item(lang, by_language[lang], rendered) for lang in kept], notes


def rows_hash(path: str) -> str:
    """What tells one file or directory of rows from another: results of both never mix in one directory."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        named = "".join(f"{file.relative_to(place)} {file_hash(file)}\n" for file in files)
        return "sha256:" + hashlib.sha256(named.encode()).hexdigest()
    return file_hash(place) if place.is_file() else path


def _text(row: dict[str, Any], side: str, encoder: Encoder | None) -> str:
    """A prompt or its parallel as the model is asked it."""
    text = row[side]
    if encoder is not None and encoder.chat:
        return encoder.render(text, row)
    if isinstance(text, str):
        return text
    if [turn["role"] for turn in text] != ["user"]:
        raise UserError(
            f"--rows: {row['origin']}: a conversation of {len(text)} turns, which needs the chat template; give "
            "--chat yes, and a model whose tokenizer has one."
        )
    return str(text[0]["content"])


def _item(language: str, rows: list[dict[str, Any]], rendered: bool) -> Item:
    split = datasets.DatasetDict({"test": datasets.Dataset.from_list([_asked(row) for row in rows])})
    source = {"custom_dataset": partial(_given, split)}
    long = any("\n" in row["answer"] for row in rows)
    task = row_task(f"rows_{language}", "own rows", language, source, LONG_ANSWER if long else None)
    references = {row["id"]: row["reference"] for row in rows if row["reference"] is not None}
    return Item(task.config.task, "own rows", language, "f1,none", None, False, task, references, rendered)


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "prompt", "answer")}


def _given(split: datasets.DatasetDict, **unused: Any) -> datasets.DatasetDict:
    """What lm-eval calls to have a task's data: it passes the task's metadata along."""
    return split
