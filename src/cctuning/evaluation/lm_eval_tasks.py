"""Any of lm-eval's tasks by name, beside the suites: one task, a group of them, or a tag that several have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from babel import Locale
from lm_eval.tasks import TaskManager

from cctuning.errors import UserError, nearest
from cctuning.evaluation.suites import Item
from cctuning.languages import UNKNOWN, canonical, is_code, tag


def named_items(
    names: Sequence[str], data: Path | None, languages: Sequence[str] | None = None, include_path: str | None = None
) -> tuple[list[Item], list[str]]:
    """The tasks of these names, and notes on what is left out.

    Args:
        names: as `lm-eval ls tasks` lists them.
        data: a directory laid out as the hub's data sets; a task whose data set is there is read from it.
        languages: codes to keep, of tasks whose names hold a language; None for all.
        include_path: a directory with tasks of one's own, as lm-eval's option of that name.

    Raises:
        UserError: no task of a name, or its data cannot be loaded.
    """
    manager = TaskManager(include_path=include_path)  # reads lm-eval's whole index: some twenty seconds
    known = [*manager.all_tasks, *manager.all_groups, *manager.all_tags]
    items, notes = [], list[str]()
    for name in dict.fromkeys(names):
        if name not in known:
            raise UserError(
                f"--tasks: lm-eval has no task {name!r}.{nearest(name, known)} `lm-eval ls tasks` lists them."
            )
        try:
            with _at_hand(data):
                items += _items(manager, name)
        except Exception as error:  # datasets, the hub's client and its HTTP library each have their own
            first = (str(error).splitlines() or [type(error).__name__])[0]
            advice = "" if data else " Without a network, give --data DIR."
            raise UserError(f"--tasks {name}: its data cannot be loaded: {first}{advice}") from error
    kept = [one for one in items if languages is None or one.language in languages]
    if len(kept) < len(items):
        notes.append(
            f"--languages: {len(items) - len(kept)} of {len(items)} tasks are of other languages, or of none."
        )
    if not kept:
        raise UserError("--tasks, --languages: nothing is left to score; name others.")
    # What writes answers is slowest, and comes last: most figures are there before it begins.
    return sorted(kept, key=lambda one: any(task.OUTPUT_TYPE == "generate_until" for task in one.tasks)), notes


class _Splits(datasets.DatasetDict):
    """Splits at hand; others are empty: a task names those that it takes examples from even where it takes none."""

    def __missing__(self, split: str) -> datasets.Dataset:
        return next(iter(self.values())).select([])


@contextmanager
def _at_hand(data: Path | None) -> Iterator[None]:
    """Within: data sets that lie in `data` are loaded from there, under the names that tasks have for them."""
    theirs = datasets.load_dataset

    def load(path: str, *args: Any, **options: Any) -> Any:
        if data is None or not (data / path).is_dir():
            return theirs(path, *args, **options)
        found = theirs(str((data / path).resolve()), *args, **options)
        return _Splits(found) if isinstance(found, datasets.DatasetDict) else found

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = theirs


def _items(manager: TaskManager, name: str) -> list[Item]:
    found = manager.load([name])
    if name in found["groups"]:
        group = found["groups"][name]
        metric = _group_metric(group)
        if metric is not None:
            return [Item(name, name, language_in(name), metric, None, False, group)]
    return [_item(one, task) for one, task in found["tasks"].items()]


def _item(name: str, task: Any) -> Item:
    metrics = task.config.metric_list or [{"metric": next(iter(task.aggregation()))}]
    filters = task.config.filter_list or [{"name": "none"}]
    metric = f"{metrics[0]['metric']},{filters[0]['name']}"
    return Item(name, name, language_in(name), metric, None, False, task)


def _group_metric(group: Any) -> str | None:
    """The figure that a group gives for all its tasks; None where it only lists them."""
    listed = getattr(group, "aggregate_metric_list", None) or getattr(
        getattr(group, "config", None), "aggregate_metric_list", None
    )
    if not listed:
        return None
    first = listed[0]
    metric = first["metric"] if isinstance(first, dict) else first.metric
    filters = first.get("filter_list", "none") if isinstance(first, dict) else first.filter_list
    return f"{metric},{filters if isinstance(filters, str) else filters[0]}"


def language_in(name: str) -> str:
    """The language that a task's name holds, looked for from its end: `global_mmlu_sw`, `belebele_swh_Latn`; or `und`.

    A code of three letters counts where the language has one of two: `pro` and `cot` are languages as well.
    """
    parts = name.split("_")
    for place in range(len(parts) - 1, 0, -1):
        scripted = "_".join(parts[place - 1 : place + 1])
        if len(parts[place]) == 4 and parts[place].istitle() and is_code(scripted):
            return canonical(scripted)
        part, before = parts[place], parts[place - 1]
        if len(part) == len(before) == 2 and is_code(before) and part.upper() in Locale("en").territories:
            return canonical(f"{before}_{part}")  # a locale: `pt_br`
        if (
            is_code(part)
            and part.isalpha()
            and (len(part) != 4 or not part.istitle())
            and len(tag(part).language) == 2
        ):
            return canonical(part)
    return UNKNOWN
