"""Score a user's own held-out rows: one task per language, from any file that `train` reads.

Prompts are rendered as in training, answers are generated greedily, and F1 and exact match are those of `metrics.py`.
Item i of a language is the i-th row in that language, so that the answers of two models pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from cctuning.data import Encoder, load_rows
from cctuning.data.chat import split_thinking
from cctuning.errors import UserError
from cctuning.evaluation.row_tasks import row_task
from cctuning.evaluation.suite_tasks import Item
from cctuning.languages import ENGLISH, language_name, matching

LONG_ANSWER_TOKENS = 256  # for a language with responses of more than one line


def load_own_rows(
    path: str, languages: Sequence[str] | None, reference: str = ENGLISH, encoder: Encoder | None = None
) -> tuple[list[Item], list[str]]:
    """Load the tasks `rows_<language>`, the reference language first.

    Args:
        path: file or directory of rows, or a hub data set.
        languages: codes to keep, None for all. The reference language is always kept.
        reference: language of the rows' reference prompts; its code names their column (`prompt_en`).
        encoder: renders prompts with the chat template; None for plain text.

    Returns:
        The tasks, and notes on what is left out.
    """
    dataset, report = load_rows([path], reference_language=reference, require_reference=False)
    by_language: dict[str, list[dict[str, Any]]] = {}
    unanswered, warnings = 0, dict[str, list[str]]()
    for row in dataset:
        answer = split_thinking(row["response"] or "")[1].strip()
        if not answer:
            unanswered += 1
            continue
        rows = by_language.setdefault(row["lang"], [])
        rows.append({"id": len(rows), "prompt": _render(row, encoder), "answer": answer})
        asked = {"prompt": row["prompt"], "tools": row.get("tools")}
        if encoder is not None and (warning := encoder.warning(asked)) is not None:
            warnings.setdefault(warning, []).append(row["origin"])
    if not by_language:
        raise UserError(f"--rows {path}: no row has a response to score answers against.")
    for wanted in languages or ():
        if not matching(wanted, by_language):
            raise UserError(
                f"--languages: no row of {path} is in {wanted!r}; it has {', '.join(sorted(by_language))}."
            )
    notes = [*report.notes, *([f"{path}: {unanswered} rows without a response are left out."] if unanswered else [])]
    notes += [f"{len(of)} of {len(dataset)} rows (the first: {of[0]}): {warning}." for warning, of in warnings.items()]
    if reference not in by_language:
        name = language_name(reference)
        notes.append(f"{path} has no row in {name}, so a change in {name} is not measured.")
    kept = list(by_language)
    if languages is not None:
        kept = [code for one in dict.fromkeys([*languages, reference]) for code in matching(one, by_language)]
    kept = sorted({*kept}, key=lambda lang: (lang != reference, lang))
    rendered = encoder is not None and encoder.chat
    return [_item(lang, by_language[lang], rendered) for lang in kept], notes


def _render(row: dict[str, Any], encoder: Encoder | None) -> str:
    """A row's prompt as text."""
    text = row["prompt"]
    if encoder is not None and encoder.chat:
        return encoder.render(text, row)
    if isinstance(text, str):
        return text
    if [turn["role"] for turn in text] != ["user"]:
        raise UserError(
            f"--rows: {row['origin']}: a conversation of {len(text)} turns needs the chat template; use --chat yes "
            "and a model whose tokenizer has one."
        )
    return str(text[0]["content"])


def _item(language: str, rows: list[dict[str, Any]], rendered: bool) -> Item:
    splits = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    source = {"custom_dataset": lambda **metadata: splits}  # lm-eval passes the task's metadata
    long = any("\n" in row["answer"] for row in rows)
    task = row_task(f"rows_{language}", "own rows", language, source, LONG_ANSWER_TOKENS if long else None)
    return Item(task.config.task, "own rows", language, "f1,none", None, task, rendered)
