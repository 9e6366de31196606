"""Load the tasks that a user names in place of a suite: held-out rows, or any lm-eval task, group or tag.

Rows are one task per language, from any file that `train` reads. Prompts are rendered as in training, answers are
generated greedily, and F1 and exact match are those of `metrics.py`. Item i of a language is the i-th row in that
language, so that the answers of two models pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from babel import Locale
from lm_eval.tasks import TaskManager

from cctuning.data import Encoder, load_rows
from cctuning.data.chat import split_thinking
from cctuning.errors import UserError, nearest
from cctuning.evaluation.row_tasks import ANSWER_TOKENS, row_task
from cctuning.evaluation.suite_tasks import Item, loading
from cctuning.languages import ENGLISH, UNKNOWN, canonical, is_code, language_name, matching, region_notes, tag

LONG_ANSWER_TOKENS = 256  # at least, for a language with responses of more than one line
MARGIN = 1.25  # tokens that are generated, over those of the longest response
MOST_ANSWER_TOKENS = 1024


# -- rows -------------------------------------------------------------------------------------------------------------


def load_own_rows(
    path: str, languages: Sequence[str] | None, reference: str = ENGLISH, encoder: Encoder | None = None
) -> tuple[list[Item], list[str]]:
    """Load the tasks `rows_<language>`, the reference language first.

    Args:
        path: file or directory of rows, or a hub data set.
        languages: codes to keep, None for all. The reference language is always kept.
        reference: language of the rows' reference prompts; its code names their column (`prompt_en`).
        encoder: renders prompts with the chat template, and counts the tokens of responses; None for plain text.

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
    others: list[str] = []
    for wanted in languages or ():
        found = matching(wanted, by_language)
        if not found:
            raise UserError(
                f"--languages: no row of {path} is in {wanted!r}; it has {', '.join(sorted(by_language))}."
            )
        others += [f"{path}: {note}" for note in region_notes(wanted, found)]
    notes = [
        *others,
        *report.notes,
        *([f"{path}: {unanswered} rows without a response are left out."] if unanswered else []),
    ]
    notes += [f"{len(of)} of {len(dataset)} rows (the first: {of[0]}): {warning}." for warning, of in warnings.items()]
    if reference not in by_language:
        name = language_name(reference)
        notes.append(f"{path} has no row in {name}, so a change in {name} is not measured.")
    kept = list(by_language)
    if languages is not None:
        kept = [code for one in dict.fromkeys([*languages, reference]) for code in matching(one, by_language)]
    items = []
    for lang in sorted({*kept}, key=lambda lang: (lang != reference, lang)):
        rows = by_language[lang]
        lengths = [len(encoder.tokenizer(row["answer"])["input_ids"]) for row in rows] if encoder is not None else [0]
        items.append(_row_item(lang, rows, max(lengths), encoder is not None and encoder.chat))
        if cut := sum(length > MOST_ANSWER_TOKENS for length in lengths):
            notes.append(
                f"{cut} of {len(rows)} responses in {lang} are longer than the {MOST_ANSWER_TOKENS} tokens that are "
                "generated at most: their scores are too low."
            )
    return items, notes


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


def _row_item(language: str, rows: list[dict[str, Any]], longest: int, rendered: bool) -> Item:
    splits = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    source = {"custom_dataset": lambda **metadata: splits}  # lm-eval passes the task's metadata
    long = any("\n" in row["answer"] for row in rows)
    tokens = max(LONG_ANSWER_TOKENS if long else ANSWER_TOKENS, min(MOST_ANSWER_TOKENS, math.ceil(MARGIN * longest)))
    task = row_task(f"rows_{language}", "own rows", language, source, tokens, one_line=not long)
    return Item(task.config.task, "own rows", language, "f1,none", None, task, rendered)


# -- tasks of lm-eval ----------------------------------------------------------------------------------------------


def load_tasks(
    names: Sequence[str], data: Path | None, languages: Sequence[str] | None = None, include_path: str | None = None
) -> tuple[list[Item], list[str]]:
    """Load the named tasks.

    Args:
        names: names that `lm-eval ls tasks` lists.
        data: directory laid out like the hub; tasks read the data sets that are in it from there.
        languages: codes to keep, of tasks whose name contains a language; None for all.
        include_path: directory with more tasks, as lm-eval's option of that name.

    Returns:
        The tasks, and notes on what is left out.
    """
    manager = TaskManager(include_path=include_path)  # indexes all of lm-eval, which takes some 20 seconds
    known = [*manager.all_tasks, *manager.all_groups, *manager.all_tags]
    items: list[Item] = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise UserError(
                f"--tasks: lm-eval has no task {name!r}.{nearest(name, known)} `lm-eval ls tasks` lists them."
            )
        with loading(f"--tasks {name}", data):
            found = _items(manager, name)
        if any(task.OUTPUT_TYPE == "loglikelihood_rolling" for item in found for task in item.tasks):
            raise UserError(f"--tasks {name}: measures perplexity, which is not supported; leave it out.")
        items += found
    spoken = [one.language for one in items]
    taken = {one: matching(one, spoken) for one in languages or ()}
    chosen = spoken if languages is None else [code for codes in taken.values() for code in codes]
    kept = [one for one in items if one.language in chosen]
    if not kept:
        raise UserError("--tasks, --languages: no task is left; name others.")
    left = len(items) - len(kept)
    notes = [f"--tasks: {note}" for one, codes in taken.items() for note in region_notes(one, codes)]
    if left:
        notes.append(f"--languages: {left} of {len(items)} tasks are in other languages, or in none.")
    return kept, notes


def _items(manager: TaskManager, name: str) -> list[Item]:
    found: Any = manager.load([name])
    group = found.get("groups", {}).get(name)
    if group is not None and group.aggregate_metric_list:  # other groups only list tasks
        first = group.aggregate_metric_list[0]
        filters = first.filter_list or [_first_filter(group.get_all_tasks()[0])]
        return [Item(name, name, language_in(name), f"{first.metric},{filters[0]}", None, group)]
    return [_task_item(one, task) for one, task in found["tasks"].items()]


def _task_item(name: str, task: Any) -> Item:
    metrics = task.config.metric_list or [{"metric": next(iter(task.aggregation()))}]
    # A metric that is no mean over items, such as a weighted F1, has no value for an item and cannot be compared.
    means = [one for one in metrics if one.get("aggregation") == "mean"]
    metric = f"{(means or metrics)[0]['metric']},{_first_filter(task)}"
    return Item(name, name, language_in(name), metric, None, task)


def _first_filter(task: Any) -> str:
    return str(task.config.filter_list[0]["name"]) if task.config.filter_list else "none"


def language_in(name: str) -> str:
    """The language code in the name of a task, searched from its end: `sw` in `global_mmlu_sw`; `und` if none.

    A code of three letters counts only where the language also has one of two: `pro` and `cot` are languages too.
    """
    parts = name.split("_")
    for place in range(len(parts) - 1, 0, -1):
        before, part = parts[place - 1], parts[place]
        if len(part) == 4 and part.istitle() and is_code(f"{before}_{part}"):
            return canonical(f"{before}_{part}")  # with a script: `belebele_swh_Latn`
        if len(part) == len(before) == 2 and is_code(before) and part.upper() in Locale("en").territories:
            return canonical(f"{before}_{part}")  # a locale: `pt_br`
        four = len(part) == 4 and part.istitle()
        if part.isalpha() and is_code(part) and not four and len(tag(part).language) == 2:
            return canonical(part)
    return UNKNOWN
