"""Load any lm-eval task, group or tag by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from babel import Locale
from lm_eval.tasks import TaskManager

from cctuning.errors import UserError, nearest
from cctuning.evaluation.suite_tasks import Item, loading
from cctuning.languages import UNKNOWN, canonical, is_code, matching, tag


def load_tasks(
    names: Sequence[str], data: Path | None, languages: Sequence[str] | None = None, include_path: str | None = None
) -> tuple[list[Item], list[str]]:
    """Load tasks by name.

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
    chosen = spoken if languages is None else [code for one in languages for code in matching(one, spoken)]
    kept = [one for one in items if one.language in chosen]
    if not kept:
        raise UserError("--tasks, --languages: no task is left; name others.")
    left = len(items) - len(kept)
    return kept, [f"--languages: {left} of {len(items)} tasks are in other languages, or in none."] if left else []


def _items(manager: TaskManager, name: str) -> list[Item]:
    found: Any = manager.load([name])
    group = found.get("groups", {}).get(name)
    if group is not None and group.aggregate_metric_list:  # other groups only list tasks
        first = group.aggregate_metric_list[0]
        filters = first.filter_list or [_first_filter(group.get_all_tasks()[0])]
        return [Item(name, name, language_in(name), f"{first.metric},{filters[0]}", None, group)]
    return [_item(one, task) for one, task in found["tasks"].items()]


def _item(name: str, task: Any) -> Item:
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
