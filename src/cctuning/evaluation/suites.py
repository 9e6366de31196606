"""The benchmark suites: which tasks each has, in which languages and with which metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks

from cctuning.errors import UserError
from cctuning.evaluation.row_tasks import ARTICLES, CHOICES, QUESTIONS
from cctuning.languages import ENGLISH, canonical, is_code, same

SUITES = ("source", "paper", "all", "current")
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
# Directories of lm-eval's tasks that hold the benchmarks of `source` and `paper`.
FOLDERS = ("mgsm/direct", "xcopa", "xstorycloze", "xnli", "xwinograd", "xquad", "openai-mmmlu/default", "mmlu/default")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: a task, or a group of tasks, for each language."""

    name: str
    dataset: str  # name on the hub
    tasks: dict[str, str]  # language code to the name of the task, or of the group
    metric: str  # main metric and filter, as lm-eval's results name them
    chance: float | None  # expected accuracy of a guess, None for generated answers
    split: str = "test"  # directory of a local file of the data set
    metrics: tuple[str, ...] = ()  # accuracies to compute instead of the task's own metrics (`row_tasks.ACCURACIES`)
    files: dict[str, Path] = field(default_factory=dict)  # language code to lm-eval's YAML file, outside `FOLDERS`
    rows: str = ""  # for rows of prompt and answer, how they are scored (`row_tasks.row_task`)


def _tasks(pattern: str, languages: str, **other: str) -> dict[str, str]:
    return {**{language: pattern.format(language) for language in languages.split()}, **other}


# lm-eval's tasks of these define accuracy alone, and their choices differ in length.
_NORMALISED = ("acc", "acc_norm")
_MMMLU = "ar_xy bn_bd de_de es_la fr_fr hi_in id_id it_it ja_jp ko_kr pt_br sw_ke yo_ng zh_cn"
# fmt: off
MGSM = Benchmark("MGSM", "juletxara/mgsm", _tasks("mgsm_direct_{}", "en bn de es fr ja ru sw te th zh"),
                 "exact_match,flexible-extract", None)
XCOPA = Benchmark("XCOPA", "cambridgeltl/xcopa", _tasks("xcopa_{}", "et ht id it qu sw ta th tr vi zh"),
                  "acc,none", 1 / 2, metrics=_NORMALISED)
XSTORYCLOZE = Benchmark("XStoryCloze", "juletxara/xstory_cloze",
                        _tasks("xstorycloze_{}", "en ar es eu hi id my ru sw te zh"),
                        "acc,none", 1 / 2, "eval", _NORMALISED)
XNLI = Benchmark("XNLI", "facebook/xnli", _tasks("xnli_{}", "en ar bg de el es fr hi ru sw th tr ur vi zh"),
                 "acc,none", 1 / 3, "validation", _NORMALISED)
XWINOGRAD = Benchmark("XWinograd", "Muennighoff/xwinograd",
                      _tasks("xwinograd_{}", "en fr pt ru zh", ja="xwinograd_jp"), "acc,none", 1 / 2)
XQUAD = Benchmark("XQuAD", "google/xquad", _tasks("xquad_{}", "en ar de el es hi ro ru th tr vi zh"),
                  "f1,none", None, "validation")
# Groups of 57 subjects. The English test is MMLU, which the others were translated from.
MMMLU = Benchmark("MMMLU", "openai/MMMLU", {"en": "mmlu"} | {name[:2]: f"mmmlu_{name}" for name in _MMMLU.split()},
                  "acc,none", 1 / 4)
# fmt: on
MKQA = Benchmark("MKQA", "apple/mkqa", _tasks("mkqa_{}_hub", " ".join(QUESTIONS)), "f1,none", None, rows="MKQA")
XLSUM = Benchmark(
    "XLSum", "csebuetnlp/xlsum", _tasks("xlsum_{}_hub", " ".join(ARTICLES)), "rouge_l,none", None, rows="XLSum"
)
SOURCE = (MGSM, XCOPA, XSTORYCLOZE, XNLI, XWINOGRAD)
PAPER = (XNLI, XSTORYCLOZE, MMMLU, XQUAD, MKQA, XLSUM)


def in_files(one: Benchmark, data: Path) -> Benchmark:
    """A benchmark of the paper as rows of prompt and answer in local files, in the languages that there are."""
    languages = sorted(path.name.split(".")[0] for path in (data / "paper" / one.name).glob("*.jsonl*"))
    tasks = _tasks(f"paper_{one.name.lower()}_{{}}", " ".join(languages))
    chance = 1 / len(CHOICES[one.name]) if one.name in CHOICES else None
    return Benchmark(f"paper {one.name}", f"paper/{one.name}", tasks, one.metric, chance, split="", rows=one.name)


# Of several varieties of one language, the one that stands for it.
_VARIETIES = ("por_latn_braz", "fra_latn_fran", "spa_latn_spai")


def _registered(folder: str, file: str, task: str) -> tuple[dict[str, str], dict[str, Path]]:
    """The tasks and files of a benchmark that the installed lm-eval has, by language.

    Args:
        folder: glob of the directory below lm-eval's tasks. file: name of the YAML file without its ending, with `{}`
            for the language. task: name of the task, likewise.
    """
    before, after = file.split("{}")
    tasks, files = {}, {}
    found = list(LM_EVAL_TASKS.glob(f"{folder}/{file.format('*')}.yaml"))
    codes = {path: path.stem.removeprefix(before).removesuffix(after) for path in found}
    for path, code in sorted(codes.items(), key=lambda one: (one[1] not in _VARIETIES, one[1])):
        if "*" in folder and path.parent.name.lower().replace(" ", "_") != code:
            continue  # a group of subjects
        name = {"north_macedonian": "mk"}.get(code, code)
        if is_code(name) and canonical(name) not in tasks:
            tasks[canonical(name)], files[canonical(name)] = task.format(code), path
    return tasks, files


# Name, data set, metric, chance, and where lm-eval keeps the tasks (see `_registered`). Global-MMLU is used for the
# languages that its Lite edition lacks. The last two generate long answers.
# fmt: off
_CURRENT: tuple[tuple[str, str, str, float | None, str, str, str], ...] = (
    ("Global-MMLU Lite", "CohereForAI/Global-MMLU-Lite", "acc,none", 1 / 4,
     "global_mmlu/default/*", "_global_mmlu_{}", "global_mmlu_{}"),
    ("Global-MMLU", "CohereForAI/Global-MMLU", "acc,none", 1 / 4,
     "global_mmlu/full/*", "_global_mmlu_full_{}", "global_mmlu_full_{}"),
    ("Belebele", "facebook/belebele", "acc,none", 1 / 4,
     "belebele", "belebele_{}", "belebele_{}"),
    ("INCLUDE", "CohereForAI/include-base-44", "acc,none", 1 / 4,
     "include/default/*", "_include_base_44_{}", "include_base_44_{}"),
    ("Global-PIQA", "mrlbenchmarks/global-piqa-parallel", "acc_norm,none", 1 / 4,
     "global_piqa/parallel_cloze", "{}", "global_piqa_parallel_cloze_{}"),
    ("Global-PIQA nonparallel", "mrlbenchmarks/global-piqa-nonparallel", "acc_norm,none", 1 / 2,
     "global_piqa/nonparallel_cloze", "{}", "global_piqa_nonparallel_cloze_{}"),
    ("AfriMMLU", "masakhane/afrimmlu", "acc,none", 1 / 4,
     "afrimmlu/direct/prompt_1", "afrimmlu_direct_{}", "afrimmlu_direct_{}_prompt_1"),
    ("AfriXNLI", "masakhane/afrixnli", "acc,none", 1 / 3,
     "afrixnli/direct/prompt_1", "afrixnli_{}", "afrixnli_{}_prompt_1"),
    ("SIB-200", "Davlan/sib200", "acc,none", 1 / 7,
     "afrobench/sib/prompt_1", "sib_{}", "sib_{}_prompt_1"),
    ("AfriMGSM", "masakhane/afrimgsm", "exact_match,flexible-extract", None,
     "afrimgsm/direct/prompt_1", "afrimgsm_{}", "afrimgsm_{}_prompt_1"),
    ("MMLU-ProX Lite", "li-lab/MMLU-ProX-Lite", "exact_match,custom-extract", None,
     "mmlu_prox/*", "_mmlu_prox_lite_{}", "mmlu_prox_lite_{}"),
)
# fmt: on
# lm-eval's tasks of these also define an F1 over the whole test, which has no value for a single item.
_ACCURACY_ALONE = ("AfriMMLU", "AfriXNLI", "SIB-200")


@cache
def current() -> tuple[Benchmark, ...]:
    """Multilingual benchmarks of recent years, in the languages that the installed lm-eval has."""
    found: list[Benchmark] = []
    for name, dataset, metric, chance, folder, file, task in _CURRENT:
        tasks, files = _registered(folder, file, task)
        if name == "Global-MMLU":
            lite = found[0].tasks.keys() - {ENGLISH}
            tasks = {language: one for language, one in tasks.items() if language not in lite}
        metrics = ("acc",) if name in _ACCURACY_ALONE else ()
        found.append(Benchmark(name, dataset, tasks, metric, chance, metrics=metrics, files=files))
    return tuple(found)


def trained_languages(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The languages that runs were trained in, without the reference language; of those that suite `current` has."""
    found: dict[str, None] = {}
    for run in runs:
        for part in (run.get("data"), run.get("parallel")):
            found |= dict.fromkeys((part or {}).get("languages", {}))
    trained = [code for code in found if code not in {run.get("reference_language") for run in runs}]
    known = {code for one in current() for code in one.tasks}
    languages = [code for code in trained if any(same(code, one) for one in known)]
    if not languages:
        told = (
            f"has no {', '.join(trained)}, which the models were trained in"
            if trained
            else (
                "takes the languages that models were trained in, and these had rows in their reference language alone"
            )
        )
        raise UserError(f"--suite current: {told}; name some with --languages.")
    if len(languages) < len(trained):
        lacking = ", ".join(code for code in trained if code not in languages)
        logging.getLogger(__name__).warning("suite current has no %s", lacking)
    return languages
