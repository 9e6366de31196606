"""Build lm-eval tasks from rows of `id`, `prompt` and `answer`, and the English task that XCOPA lacks.

Where the answer is the label of a choice, labels are compared by likelihood; otherwise an answer is generated and
scored by `metrics.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.xcopa import utils

from cctuning.evaluation.metrics import exact_match, rouge_l, token_f1

CHOICES = {"XNLI": ("1", "2", "3"), "XStoryCloze": ("1", "2"), "MMMLU": ("A", "B", "C", "D")}
ANSWER_TOKENS = 32  # a phrase, as in MKQA and XQuAD
SUMMARY_TOKENS = 128  # one sentence, even at three tokens per character
VERSION = 1.0
XCOPA_ENGLISH = "xcopa_en_local"  # name of the task


def _mean(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


# Accuracy, and accuracy with log-likelihoods divided by the choice's length in characters, as lm-eval defines them.
ACCURACIES = [_mean("acc"), _mean("acc_norm")]


def paper_task(name: str, benchmark: str, language: str, path: Path) -> ConfigurableTask:
    """The task of the rows in `path`."""
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path.resolve())}}}
    return row_task(name, benchmark, language, source)


def row_task(
    name: str, benchmark: str, language: str, source: dict[str, Any], long: int | None = None
) -> ConfigurableTask:
    """A task of rows with `prompt` and `answer`, scored as `benchmark` is.

    Args:
        source: lm-eval's settings for the rows: `dataset_path`, `dataset_kwargs` and `process_docs`, or
            `custom_dataset`.
        long: maximum tokens of an answer of several lines; None for one short line.
    """
    config: dict[str, Any] = {
        "task": name,
        **source,
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": " ",
        "metadata": {"version": VERSION},
    }
    if benchmark in CHOICES:
        labels = list(CHOICES[benchmark])
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": labels,
            "doc_to_target": partial(_label_index, labels),
            "metric_list": [_mean("acc")],
        }
    else:
        summary = benchmark == "XLSum"
        config |= {
            "output_type": "generate_until",
            "doc_to_target": _first_answer,
            "generation_kwargs": {
                "until": [] if long else ["\n"],
                "do_sample": False,
                "max_gen_toks": long or (SUMMARY_TOKENS if summary else ANSWER_TOKENS),
            },
            "process_results": partial(_score_summary if summary else _score_answer, language),
            "metric_list": [_mean("rouge_l")] if summary else [_mean("f1"), _mean("em")],
        }
    return ConfigurableTask(config=config)


def _label_index(labels: list[str], doc: dict[str, Any]) -> int:
    return labels.index(doc["answer"])


def _answers(doc: dict[str, Any]) -> list[str]:
    return [doc["answer"]] if isinstance(doc["answer"], str) else [str(answer) for answer in doc["answer"]]


def _first_answer(doc: dict[str, Any]) -> str:
    return _answers(doc)[0]


def _score_answer(language: str, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    answer, targets = results[0].strip(), _answers(doc)
    return {"f1": token_f1(answer, targets, language), "em": exact_match(answer, targets, language)}


def _score_summary(language: str, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"rouge_l": rouge_l(results[0].strip(), _first_answer(doc), language)}


def xcopa_english(folder: Path) -> ConfigurableTask:
    """English rows in XCOPA's layout (COPA), with prompts as lm-eval's for the other languages."""
    return ConfigurableTask(
        config={
            "task": XCOPA_ENGLISH,
            "dataset_path": str(folder.resolve()),
            "dataset_name": "en",
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": partial(utils.doc_to_text, connector={"cause": "because", "effect": "therefore"}),
            "doc_to_target": "label",
            "doc_to_choice": utils.doc_to_choice,
            "metric_list": ACCURACIES,
            "metadata": {"version": VERSION},
        }
    )
