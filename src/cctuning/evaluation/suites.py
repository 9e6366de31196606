"""Which tasks a suite has: lm-eval's own wherever it has them, under their own names and versions, and ours elsewhere.

With the hub, tasks find their data by themselves. With a local directory, the same tasks are pointed at it, every file
that will be read is checked first, line by line, and no network is used. Loading only the folders of lm-eval that are
needed takes no time; loading its whole index takes twenty seconds.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm

from cctuning.errors import UserError
from cctuning.evaluation import mkqa_xlsum
from cctuning.evaluation.row_tasks import ACCURACIES, CHOICES, paper_task, xcopa_english
from cctuning.languages import ENGLISH

# Of lm-eval's tasks.
FOLDERS = ("mgsm/direct", "xcopa", "xstorycloze", "xnli", "xwinograd", "xquad", "openai-mmmlu/default", "mmlu/default")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as lm-eval has it. `tasks`: language to the name of its task, or of its group of tasks; `metric`:
    the main one, as results call it."""

    name: str
    dataset: str
    split: str
    fields: tuple[str, ...]
    tasks: dict[str, str]
    metric: str
    chance: float | None
    parallel: bool  # item i is the same question in every language, and the prompt is not part of the choices
    overrides: tuple[tuple[str, Any], ...] = ()  # what a directory that lacks the training split needs
    normalise: bool = False  # lm-eval's task has accuracy alone, and its choices differ in length


def _named(pattern: str, languages: str, **other: str) -> dict[str, str]:
    return {**{language: pattern.format(language) for language in languages.split()}, **other}


SOURCE = (
    Benchmark(
        "MGSM",
        "juletxara/mgsm",
        "test",
        ("question", "answer_number"),
        _named("mgsm_direct_{}", "en bn de es fr ja ru sw te th zh"),
        "exact_match,flexible-extract",
        None,
        True,
    ),
    Benchmark(
        "XCOPA",
        "cambridgeltl/xcopa",
        "test",
        ("premise", "choice1", "choice2", "question", "label"),
        _named("xcopa_{}", "et ht id it qu sw ta th tr vi zh"),
        "acc,none",
        1 / 2,
        True,
        normalise=True,
    ),
    Benchmark(
        "XStoryCloze",
        "juletxara/xstory_cloze",
        "eval",
        ("input_sentence_1", "sentence_quiz1", "sentence_quiz2", "answer_right_ending"),
        _named("xstorycloze_{}", "en ar es eu hi id my ru sw te zh"),
        "acc,none",
        1 / 2,
        True,
        (("training_split", None),),
        True,
    ),
    Benchmark(
        "XNLI",
        "facebook/xnli",
        "validation",
        ("premise", "hypothesis", "label"),
        _named("xnli_{}", "en ar bg de el es fr hi ru sw th tr ur vi zh"),
        "acc,none",
        1 / 3,
        False,
        (("training_split", None),),
        True,
    ),
    Benchmark(
        "XWinograd",
        "Muennighoff/xwinograd",
        "test",
        ("sentence", "option1", "option2", "answer"),
        _named("xwinograd_{}", "en fr pt ru zh", ja="xwinograd_jp"),
        "acc,none",
        1 / 2,
        False,
    ),
)
XQUAD = Benchmark(
    "XQuAD",
    "google/xquad",
    "validation",
    ("context", "question", "answers"),
    _named("xquad_{}", "en ar de el es hi ro ru th tr vi zh"),
    "f1,none",
    None,
    True,
)
_MMMLU_LOCALES = (
    *("ar_xy", "bn_bd", "de_de", "es_la", "fr_fr", "hi_in", "id_id"),
    *("it_it", "ja_jp", "ko_kr", "pt_br", "sw_ke", "yo_ng", "zh_cn"),
)
# 57 subjects a language, as lm-eval groups and weighs them. English is what the others were translated from: MMLU.
MMMLU = Benchmark(
    "MMMLU",
    "openai/MMMLU",
    "test",
    ("Question", "Answer"),
    {"en": "mmlu"} | {name[:2]: f"mmmlu_{name}" for name in _MMMLU_LOCALES},
    "acc,none",
    1 / 4,
    False,
)
PAPER_METRIC = {"XQuAD": "f1,none", "MKQA": "f1,none", "XLSum": "rouge_l,none"}  # the others: acc,none
PAPER = ("XNLI", "XStoryCloze", "MMMLU", "XQuAD", "MKQA", "XLSum")
SUITES = ("source", "paper", "all")


@dataclass
class Item:
    """One task to run: its name, what it belongs to, and the lm-eval task itself, or its group of tasks.

    `references`: item to its prompt's parallel, where the data say it themselves. `file`: what holds its items, where
    that is a local file. `rendered`: its prompts and references are as the model sees them, and get no chat template.
    """

    name: str
    benchmark: str
    language: str
    metric: str
    chance: float | None
    parallel: bool
    task: Any
    references: dict[int, str] | None = None
    rendered: bool = False
    file: Path | None = None

    @property
    def grouped(self) -> bool:
        return isinstance(self.task, Group)

    @property
    def tasks(self) -> list[Any]:
        """The task, or the group's, in its order."""
        return self.task.get_all_tasks() if self.grouped else [self.task]

    @property
    def version(self) -> str:
        own = sorted({str((task.config.metadata or {}).get("version", task.VERSION)) for task in self.tasks})
        return f"{self.task.version} of {', '.join(own)}" if self.grouped else own[0]

    def keys(self) -> list[Any]:
        """What tells an item's parallels in other languages: its `id` where the rows have one, else its place."""
        ids = [doc.get("id") for task in self.tasks for doc in task.eval_docs]
        return ids if None not in ids and len({*ids}) == len(ids) else list(range(len(ids)))

    def count(self, limit: int | None) -> int:
        """How many items will be asked; of a group, `limit` from each of its tasks."""
        sizes = [len(task.eval_docs) for task in self.tasks]
        return sum(size if limit is None else min(limit, size) for size in sizes)


def plan(
    suite: str,
    languages: Sequence[str] | None,
    data: Path | None,
    benchmarks: Sequence[str] | None = None,
    reference: str = ENGLISH,
) -> tuple[list[Item], list[str]]:
    """The tasks of a suite, the reference language first within each benchmark, and notes on what is left out.

    Args:
        suite: `source`, `paper` or `all`.
        languages: ISO 639-1 codes; None for all. The reference language is always added.
        data: a directory laid out as the hub's data sets (`org/name/split/lang.jsonl.gz`), and for the paper's rows
            `paper/NAME/lang.jsonl.gz`; None for the hub.
        benchmarks: names to keep; None for all.
        reference: the reference language's code.

    Raises:
        UserError: a language or benchmark nobody has, or a file that is missing or broken.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such directory; expected one laid out as docs/guides/evaluate.md says.")
    found: list[tuple[str, str, Any]] = []
    notes: list[str] = []
    if suite in ("source", "all"):
        found += [(one.name, language, one) for one in SOURCE for language in _languages(one, data, notes)]
    if suite in ("paper", "all"):
        found += _paper(suite, data, notes)
    if not found:
        raise UserError(f"--data {data}: none of suite {suite}'s files is there; the layout: docs/guides/evaluate.md.")
    known = sorted({language for _, language, _ in found})
    names = sorted({name for name, _, _ in found})
    for wanted in benchmarks or ():
        if wanted not in names:
            raise UserError(f"--benchmarks: {wanted!r} is not in this suite; it has {', '.join(names)}.")
    for wanted in languages or ():
        if wanted not in known:
            raise UserError(f"--languages: no benchmark of suite {suite} has {wanted!r}; it has {', '.join(known)}.")
    kept = [
        one
        for one in found
        if (benchmarks is None or one[0] in benchmarks) and (languages is None or one[1] in {*languages, reference})
    ]
    notes = [note for note in notes if benchmarks is None or note.partition(":")[0] in {*benchmarks, "paper"}]
    notes += _gaps(kept, [*(languages or ()), reference])
    if not kept:
        raise UserError("--benchmarks, --languages: nothing is left to score; name others.")
    kept.sort(key=lambda one: (names.index(one[0]), one[1] != reference, one[1]))
    _check(kept, data)
    return _build(kept, data), notes


def _languages(one: Benchmark, data: Path | None, notes: list[str]) -> list[str]:
    """A benchmark's languages that there is data for. XCOPA's English (COPA's own rows) is in local files alone."""
    if data is None:
        return list(one.tasks)
    languages = [*one.tasks, *(["en"] if one.name == "XCOPA" else [])]
    there = [language for language in languages if local_file(one, language, data) is not None]
    lacking = sorted({*one.tasks} - {*there})
    if lacking:
        notes.append(f"{one.name}: no file for {', '.join(lacking)} in {data / one.dataset / one.split}.")
    return there


def _paper(suite: str, data: Path | None, notes: list[str]) -> list[tuple[str, str, Any]]:
    """(benchmark, language, source): a `Benchmark` for lm-eval's task, a path for rows, None for `hub.py`'s task."""
    if data is None:
        own = [XQUAD, MMMLU] if suite == "all" else [SOURCE[2], SOURCE[3], MMMLU, XQUAD]
        theirs = [(one.name, language, one) for one in own for language in one.tasks]
        return theirs + [
            (name, language, None) for name, languages in mkqa_xlsum.LANGUAGES.items() for language in languages
        ]
    found: list[tuple[str, str, Any]] = []
    for name in PAPER:
        files = sorted((data / "paper" / name).glob("*.jsonl*"))
        if not files:
            notes.append(f"paper: no {data / 'paper' / name}; {name} is left out.")
        found += [(f"paper {name}", path.name.split(".")[0], path) for path in files]
    if not found and suite == "paper":
        raise UserError(f"--data {data}: no paper/ with rows there; see docs/guides/evaluate.md for the layout.")
    return found


def _gaps(kept: list[tuple[str, str, Any]], languages: Sequence[str]) -> list[str]:
    notes = []
    for name in dict.fromkeys(one[0] for one in kept):
        has = {language for benchmark, language, _ in kept if benchmark == name}
        lacking = [language for language in dict.fromkeys(languages) if language not in has]
        if lacking:
            notes.append(f"{name} has no {', '.join(lacking)}.")
    return notes


def local_file(one: Benchmark, language: str, data: Path) -> Path | None:
    """The file that holds a benchmark's scored split in one language, if it is there."""
    name = "jp" if one.name == "XWinograd" and language == "ja" else language
    for ending in (".jsonl.gz", ".jsonl"):
        path = data / one.dataset / one.split / f"{name}{ending}"
        if path.is_file():
            return path
    return None


def _check(kept: list[tuple[str, str, Any]], data: Path | None) -> None:
    """Read every file that will be scored, so that a broken line is named before hours of work and not after."""
    if data is None:
        return
    for name, language, one in kept:
        if isinstance(one, Benchmark):
            path = local_file(one, language, data)
            assert path is not None  # or it would not have been planned
            _check_file(path, one.fields)
            if not (data / one.dataset / "README.md").is_file():
                raise UserError(f"{data / one.dataset}/README.md: missing; it names the data set's files to datasets.")
        else:
            _check_file(one, ("id", "prompt", "answer"), CHOICES.get(name.removeprefix("paper ")))


def _check_file(path: Path, fields: tuple[str, ...], labels: tuple[str, ...] | None = None) -> None:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not JSON ({error}); mend or remove that line.") from None
                lacking = [field for field in fields if not isinstance(row, dict) or row.get(field) is None]
                if lacking:
                    raise UserError(f"{path}:{number}: {lacking[0]}: missing; expected {', '.join(fields)}.")
                if labels and row["answer"] not in labels:
                    raise UserError(f"{path}:{number}: answer: {row['answer']!r} is not one of {', '.join(labels)}.")
    except UserError:
        raise
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}:{number + 1}: cannot be read ({error}); copy the file again.") from None
    if not number:
        raise UserError(f"{path}: empty; copy the file again.")


def _build(kept: list[tuple[str, str, Any]], data: Path | None) -> list[Item]:
    root = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_path=[root / folder for folder in FOLDERS], include_defaults=False)
    items = []
    # No time from files; from the hub, a benchmark of 57 tasks a language is worth a bar.
    for name, language, one in tqdm(kept, "loading", leave=False, disable=not sys.stderr.isatty()):
        try:
            items.append(_item(manager, name, language, one, data))
        except Exception as error:  # datasets, the hub's client and its HTTP library each have their own
            first = (str(error).splitlines() or [type(error).__name__])[0]
            advice = "" if data else " Without a network, give --data DIR."
            raise UserError(f"{name}, {language}: its data cannot be loaded: {first}{advice}") from error
    return items


def _item(manager: TaskManager, name: str, language: str, one: Any, data: Path | None) -> Item:
    if isinstance(one, Benchmark):
        task = _theirs(manager, one, language, data)
        label = task.name if isinstance(task, Group) else task.config.task
        file = local_file(one, language, data) if data is not None else None
        return Item(label, name, language, one.metric, one.chance, one.parallel, task, file=file)
    short = name.removeprefix("paper ")
    task = mkqa_xlsum.hub_task(short, language) if one is None else paper_task(short, language, one)
    chance = 1 / len(CHOICES[short]) if short in CHOICES else None
    parallel = short != "XLSum"  # whose articles are other ones in each language
    metric = PAPER_METRIC.get(short, "acc,none")
    return Item(task.config.task, name, language, metric, chance, parallel, task, file=one)


def _theirs(manager: TaskManager, one: Benchmark, language: str, data: Path | None) -> Any:
    """lm-eval's own task or group (or, of XCOPA in English, ours in its image)."""
    if data is not None and (one.name, language) == ("XCOPA", "en"):
        return xcopa_english(data / one.dataset)
    name = one.tasks[language]
    if one is MMMLU:
        return manager.load([name])["groups"][name]
    spec: dict[str, Any] = {"task": name}
    if data is not None:
        spec |= {"dataset_path": str((data / one.dataset).resolve()), **dict(one.overrides)}
    if one.normalise:
        spec["metric_list"] = ACCURACIES
    # A registered task takes another data set only inside a group.
    return manager.load([{"group": "cctuning", "task": [spec]}])["tasks"][name]
