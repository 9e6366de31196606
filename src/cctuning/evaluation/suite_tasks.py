"""Select the tasks of a suite, check their local files and load them."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm

from cctuning.data.text_files import numbered_lines
from cctuning.errors import UserError
from cctuning.evaluation.row_tasks import ACCURACIES, CHOICES, XCOPA_ENGLISH, hub_task, row_task, xcopa_english
from cctuning.evaluation.suites import FOLDERS, LM_EVAL_TASKS, PAPER, SOURCE, XCOPA, Benchmark, current, in_files
from cctuning.languages import ENGLISH, matching, region_notes


@dataclass
class Item:
    """A task to score: an lm-eval task or a group of them."""

    name: str
    benchmark: str
    language: str
    metric: str  # main metric and filter, as lm-eval's results name them
    chance: float | None  # expected accuracy of a guess, None for generated answers
    task: Any
    rendered: bool = False  # with the chat template

    @property
    def grouped(self) -> bool:
        return isinstance(self.task, Group)

    @property
    def tasks(self) -> list[Any]:
        """The task, or those of the group."""
        return self.task.get_all_tasks() if self.grouped else [self.task]

    @property
    def generates(self) -> bool:
        """Whether answers are generated; otherwise choices are compared by likelihood."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.tasks)

    @property
    def version(self) -> str:
        versions = sorted({str((task.config.metadata or {}).get("version", task.VERSION)) for task in self.tasks})
        return f"{self.task.version} of {', '.join(versions)}" if self.grouped else versions[0]

    def data_hash(self, limit: int | None) -> str:
        """Hash of the first `limit` items of each task, and of the examples that their prompts may have."""
        digest = hashlib.blake2b(digest_size=16)
        for task in self.tasks:
            examples = task.fewshot_docs() if task.get_config("num_fewshot") else None
            for doc in [*itertools.islice(task.eval_docs, limit), *(examples or ())]:
                digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def load_suite(
    suite: str,
    languages: Sequence[str] | None,
    data: Path | None,
    benchmarks: Sequence[str] | None = None,
    reference: str = ENGLISH,
) -> tuple[list[Item], list[str]]:
    """Load the tasks of a suite, the reference language first within each benchmark.

    Args:
        suite: one of `SUITES`.
        languages: language codes; None for all. The reference language is always added.
        data: directory with the data sets (see docs/guides/evaluate.md); None for the hub.
        benchmarks: names to keep; None for all.
        reference: code of the reference language.

    Returns:
        The tasks, and notes on what is left out.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such directory; docs/guides/evaluate.md describes the layout.")
    found, notes, others = _benchmarks(suite, data), list[str](), list[str]()
    codes = sorted({code for one in found for code in one.tasks})
    if languages is not None:
        taken = {one: matching(one, codes) or [one] for one in languages}
        others = [f"suite {suite}: {note}" for one, of in taken.items() for note in region_notes(one, of)]
        languages = [code for of in taken.values() for code in of]
    if suite == "current" and languages is not None:
        wanted = {*languages} - {reference} or {reference}
        found = [one for one in found if {*one.tasks} & wanted]
    if data is not None and found:
        found = [one for one in (_with_files(one, data, notes) for one in found) if one.tasks]
        if not found:
            raise UserError(f"--data {data}: has no files of suite {suite}; docs/guides/evaluate.md has the layout.")
    known = sorted({language for one in found for language in one.tasks})
    for language in languages or ():
        if language not in known:
            told = f"it has {', '.join(known)}" if suite != "current" else "`cctuning evaluate --tasks` takes any task"
            raise UserError(f"--languages: suite {suite} has no {language!r}; {told}.")
    if benchmarks is not None:
        names = {one.name.lower(): one.name for one in found}
        for name in benchmarks:
            if name.lower() not in names:
                has = ", ".join(sorted(names.values()))
                raise UserError(f"--benchmarks: {name!r} is not in suite {suite}; it has {has}.")
        chosen = [names[name.lower()] for name in benchmarks]
        found = [one for one in found if one.name in chosen]
        notes = [note for note in notes if note.partition(":")[0] in chosen]
    kept = []
    for one in found:
        ordered = sorted(one.tasks, key=lambda code: (code != reference, code))
        kept += [(one, code) for code in ordered if languages is None or code in {*languages, reference}]
        lacking = [code for code in dict.fromkeys([*(languages or ()), reference]) if code not in one.tasks]
        notes += [f"{one.name} has no {', '.join(lacking)}."] if lacking else []
    notes = others + notes
    if not kept:
        raise UserError("--benchmarks, --languages: no task is left; name others.")
    for one, language in kept:
        path = local_file(one, language, data)
        for _ in numbered_lines(path) if path is not None else ():
            pass  # datasets reads a truncated file without an error
    return _load(kept, data), notes


def _benchmarks(suite: str, data: Path | None) -> list[Benchmark]:
    if suite == "current":
        return list(current())
    found = list(SOURCE) if suite in ("source", "all") else []
    if suite in ("paper", "all"):
        found += [in_files(one, data) if data else one for one in PAPER if data or one not in found]
    return found


def _with_files(one: Benchmark, data: Path, notes: list[str]) -> Benchmark:
    """A benchmark with the languages that `data` has. XCOPA in English (COPA) exists in local files alone."""
    folder = data / one.dataset / one.split
    if one.files:  # Global-MMLU has another owner in the tasks of some languages
        there = one.tasks if any(data.glob(f"*/{Path(one.dataset).name}")) else {}
    else:
        tasks = one.tasks | ({ENGLISH: XCOPA_ENGLISH} if one is XCOPA else {})
        there = {code: task for code, task in tasks.items() if local_file(one, code, data) is not None}
    lacking = [code for code in one.tasks if code not in there]
    if not there:
        notes.append(f"{one.name}: no {folder}; left out.")
    elif lacking:
        notes.append(f"{one.name}: no file for {', '.join(sorted(lacking))} in {folder}.")
    return replace(one, tasks=there)


def local_file(one: Benchmark, language: str, data: Path | None) -> Path | None:
    """The file with a benchmark's test split in one language, None where there is none."""
    if data is None or one.files:
        return None
    name = "jp" if one.name == "XWinograd" and language == "ja" else language
    paths = (data / one.dataset / one.split / f"{name}{ending}" for ending in (".jsonl.gz", ".jsonl"))
    return next((path for path in paths if path.is_file()), None)


def _check_rows(path: Path, docs: Any, labels: Sequence[str]) -> None:
    """Check prompt/answer rows before any task is scored."""
    for place, row in enumerate(docs):
        lacking = [field for field in ("id", "prompt", "answer") if row.get(field) is None]
        if lacking:
            raise UserError(f"{path}: row {place + 1}: {lacking[0]}: missing; expected id, prompt, answer.")
        if labels and row["answer"] not in labels:
            raise UserError(f"{path}: row {place + 1}: answer: {row['answer']!r} is not one of {', '.join(labels)}.")


def _load(kept: list[tuple[Benchmark, str]], data: Path | None) -> list[Item]:
    files = {one.files[language].parent for one, language in kept if one.files}
    folders = sorted(files) or [LM_EVAL_TASKS / folder for folder in FOLDERS]
    manager = TaskManager(include_path=folders, include_defaults=False)  # the whole index takes 20 seconds
    items = []
    # From the hub, a benchmark has up to 57 tasks per language to download.
    for one, language in tqdm(kept, "loading", leave=False, disable=not sys.stderr.isatty()):
        with loading(f"{one.name}, {language}", data):
            task = _task(manager, one, language, local_file(one, language, data))
            items.append(Item(one.tasks[language], one.name, language, one.metric, one.chance, task))
    return items


class _Splits(datasets.DatasetDict):
    """Local splits; other splits are empty, since tasks name those of their examples even where they use none."""

    def __missing__(self, split: str) -> datasets.Dataset:
        return next(iter(self.values())).select([])


@contextmanager
def loading(name: str, data: Path | None) -> Iterator[None]:
    """Within this context, tasks load data sets from `data` where it has them; errors become a `UserError`."""
    load_dataset = datasets.load_dataset

    def load(path: str, *args: Any, **options: Any) -> Any:
        if data is None or not (data / path).is_dir():
            return load_dataset(path, *args, **options)
        found = load_dataset(str((data / path).resolve()), *args, **options)
        return _Splits(found) if isinstance(found, datasets.DatasetDict) else found

    datasets.load_dataset = load
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and its HTTP library have their own classes
        first = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "" if data else " Without network access, use --data DIR."
        raise UserError(f"{name}: its data cannot be loaded: {first.rstrip('.')}.{advice}") from error
    finally:
        datasets.load_dataset = load_dataset


def _task(manager: TaskManager, one: Benchmark, language: str, file: Path | None) -> Any:
    """lm-eval's own task or group, or one of `row_tasks`; `file` has the local rows."""
    name = one.tasks[language]
    if name == XCOPA_ENGLISH and file is not None:
        return xcopa_english(file.parent.parent)
    if one.rows and file is None:
        return hub_task(name, one.rows, language)
    if one.rows and file is not None:
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file.resolve())}}}
        task = row_task(name, one.rows, language, source)
        _check_rows(file, task.eval_docs, CHOICES.get(one.rows, ()))
        return task
    if one.metrics:
        metrics = [metric for metric in ACCURACIES if metric["metric"] in one.metrics]
        # lm-eval overrides settings of a registered task only inside a group.
        group: Any = {"group": "cctuning", "task": [{"task": name, "metric_list": metrics}]}
        return manager.load([group])["tasks"][name]
    found: Any = manager.load([name])
    return found.get("groups", {}).get(name) or found["tasks"][name]
