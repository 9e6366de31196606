"""Select the tasks of a suite, check their local files and load them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm

from cctuning.data.readers import numbered_lines
from cctuning.errors import UserError
from cctuning.evaluation import mkqa_xlsum
from cctuning.evaluation.row_tasks import ACCURACIES, CHOICES, paper_task, xcopa_english
from cctuning.evaluation.suites import (
    FOLDERS,
    LM_EVAL_TASKS,
    MMMLU,
    PAPER_METRIC,
    PAPER_ON_HUB,
    PAPER_ROWS,
    SOURCE,
    XQUAD,
    Benchmark,
    current,
)
from cctuning.languages import ENGLISH, same


@dataclass
class Item:
    """A task to score: an lm-eval task or a group of them.

    Attributes:
        metric: main metric and filter, as lm-eval's results name them.
        chance: expected accuracy of a guess, None for generated answers.
        rendered: prompts are rendered with the chat template already.
        file: local file that holds the items.
    """

    name: str
    benchmark: str
    language: str
    metric: str
    chance: float | None
    task: Any
    rendered: bool = False
    file: Path | None = None

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


# Benchmark name, language, and the source of its task: a `Benchmark` of lm-eval, a local file of rows, or None for
# MKQA and XLSum on the hub.
Candidate = tuple[str, str, Any]


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
    notes: list[str] = []
    found: list[Candidate] = []
    if suite == "current":
        codes = sorted({code for one in current() for code in one.tasks})
        languages = languages and [
            one if one in codes else next((code for code in codes if same(code, one)), one) for one in languages
        ]
        found = _current(languages, data, reference, notes)
    if suite in ("source", "all"):
        found += [(one.name, language, one) for one in SOURCE for language in _languages(one, data, notes)]
    if suite in ("paper", "all"):
        found += _paper(suite, data, notes)
    if not found and data is not None and suite != "current":
        raise UserError(f"--data {data}: has no files of suite {suite}; docs/guides/evaluate.md describes the layout.")
    known = sorted({language for _, language, _ in found})
    names = list(dict.fromkeys(name for name, _, _ in found))
    for name in benchmarks or ():
        if name not in names:
            raise UserError(f"--benchmarks: {name!r} is not in suite {suite}; it has {', '.join(sorted(names))}.")
    for language in languages or ():
        if language not in known:
            told = f"it has {', '.join(known)}" if suite != "current" else "`cctuning evaluate --tasks` takes any task"
            raise UserError(f"--languages: suite {suite} has no {language!r}; {told}.")
    kept = [
        one
        for one in found
        if (benchmarks is None or one[0] in benchmarks) and (languages is None or one[1] in {*languages, reference})
    ]
    notes = [note for note in notes if benchmarks is None or note.partition(":")[0] in {*benchmarks, "paper"}]
    notes += _missing_languages(kept, [*(languages or ()), reference])
    if not kept:
        raise UserError("--benchmarks, --languages: no task is left; name others.")
    kept.sort(key=lambda one: (names.index(one[0]), one[1] != reference, one[1]))
    if data is not None and suite != "current":
        for _, language, one in kept:
            path = one if isinstance(one, Path) else local_file(one, language, data)
            for _ in numbered_lines(path) if path is not None else ():
                pass  # datasets reads a truncated file without an error
    return _load(kept, data), notes


def _current(languages: Sequence[str] | None, data: Path | None, reference: str, notes: list[str]) -> list[Candidate]:
    """The benchmarks that have at least one of the languages, and whose data set is there."""
    found: list[Candidate] = []
    for one in current():
        if languages is not None and not {*one.tasks} & ({*languages} - {reference} or {reference}):
            continue
        # Global-MMLU has another owner in the tasks of some languages.
        if data is not None and not any(data.glob(f"*/{Path(one.dataset).name}")):
            notes.append(f"{one.name}: no {data / one.dataset}; left out.")
            continue
        found += [(one.name, language, one) for language in one.tasks]
    return found


def _languages(one: Benchmark, data: Path | None, notes: list[str]) -> list[str]:
    """The languages of a benchmark that there is data for. XCOPA in English (COPA) exists in local files alone."""
    if data is None:
        return list(one.tasks)
    languages = [*one.tasks, *(["en"] if one.name == "XCOPA" else [])]
    there = [language for language in languages if local_file(one, language, data) is not None]
    lacking = sorted({*one.tasks} - {*there})
    if lacking:
        notes.append(f"{one.name}: no file for {', '.join(lacking)} in {data / one.dataset / one.split}.")
    return there


def _paper(suite: str, data: Path | None, notes: list[str]) -> list[Candidate]:
    found: list[Candidate] = []
    if data is None:
        on_hub = (XQUAD, MMMLU) if suite == "all" else PAPER_ON_HUB  # `all` has the others from `source`
        found += [(one.name, language, one) for one in on_hub for language in one.tasks]
        rows = mkqa_xlsum.LANGUAGES.items()
        return found + [(name, language, None) for name, languages in rows for language in languages]
    for name in PAPER_ROWS:
        files = sorted((data / "paper" / name).glob("*.jsonl*"))
        if not files:
            notes.append(f"paper: no {data / 'paper' / name}; {name} is left out.")
        found += [(f"paper {name}", path.name.split(".")[0], path) for path in files]
    return found


def _missing_languages(kept: list[Candidate], languages: Sequence[str]) -> list[str]:
    notes = []
    for name in dict.fromkeys(one[0] for one in kept):
        has = {language for benchmark, language, _ in kept if benchmark == name}
        lacking = [language for language in dict.fromkeys(languages) if language not in has]
        if lacking:
            notes.append(f"{name} has no {', '.join(lacking)}.")
    return notes


def local_file(one: Benchmark, language: str, data: Path) -> Path | None:
    """The file with a benchmark's test split in one language, None where there is none."""
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


def _load(kept: list[Candidate], data: Path | None) -> list[Item]:
    files = {one.files[language].parent for _, language, one in kept if isinstance(one, Benchmark) and one.files}
    folders = sorted(files) or [LM_EVAL_TASKS / folder for folder in FOLDERS]
    manager = TaskManager(include_path=folders, include_defaults=False)  # the whole index takes 20 seconds
    items = []
    # From the hub, a benchmark has up to 57 tasks per language to download.
    for name, language, one in tqdm(kept, "loading", leave=False, disable=not sys.stderr.isatty()):
        with loading(f"{name}, {language}", data):
            items.append(_item(manager, name, language, one, data))
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


def _item(manager: TaskManager, name: str, language: str, one: Any, data: Path | None) -> Item:
    if isinstance(one, Benchmark):
        task = _lm_eval_task(manager, one, language, data)
        label = task.name if isinstance(task, Group) else task.config.task
        file = local_file(one, language, data) if data is not None else None
        return Item(label, name, language, one.metric, one.chance, task, file=file)
    short = name.removeprefix("paper ")
    task = mkqa_xlsum.hub_task(short, language) if one is None else paper_task(short, language, one)
    if one is not None:
        _check_rows(one, task.eval_docs, CHOICES.get(short, ()))
    chance = 1 / len(CHOICES[short]) if short in CHOICES else None
    metric = PAPER_METRIC.get(short, "acc,none")
    return Item(task.config.task, name, language, metric, chance, task, file=one)


def _lm_eval_task(manager: TaskManager, one: Benchmark, language: str, data: Path | None) -> Any:
    """lm-eval's own task or group; for XCOPA in English, ours after its model."""
    if data is not None and (one.name, language) == ("XCOPA", "en"):
        return xcopa_english(data / one.dataset)
    name = one.tasks[language]
    if one.metrics:
        metrics = [metric for metric in ACCURACIES if metric["metric"] in one.metrics]
        # lm-eval overrides settings of a registered task only inside a group.
        group: Any = {"group": "cctuning", "task": [{"task": name, "metric_list": metrics}]}
        return manager.load([group])["tasks"][name]
    found: Any = manager.load([name])
    return found.get("groups", {}).get(name) or found["tasks"][name]
