"""Build lm-eval tasks from rows of `id`, `prompt` and `answer`: of local files, and of MKQA and XLSum from the hub.

Where the answer is the label of a choice, labels are compared by likelihood; otherwise an answer is generated and
scored by `metrics.py`. Also the English task that XCOPA lacks.
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


def row_task(
    name: str,
    benchmark: str,
    language: str,
    source: dict[str, Any],
    tokens: int | None = None,
    one_line: bool = True,
) -> ConfigurableTask:
    """A task of rows with `prompt` and `answer`, scored as `benchmark` is.

    Args:
        source: lm-eval's settings for the rows: `dataset_path`, `dataset_kwargs` and `process_docs`, or
            `custom_dataset`.
        tokens: maximum of an answer; None: that of the benchmark.
        one_line: an answer ends with its line.
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
            "doc_to_target": lambda doc: labels.index(doc["answer"]),
            "metric_list": [_mean("acc")],
        }
    else:
        summary = benchmark == "XLSum"
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda doc: _targets(doc)[0],
            "generation_kwargs": {
                "until": ["\n"] if one_line else [],
                "do_sample": False,
                "max_gen_toks": tokens or (SUMMARY_TOKENS if summary else ANSWER_TOKENS),
            },
            "process_results": partial(_score_summary if summary else _score_answer, language),
            "metric_list": [_mean("rouge_l")] if summary else [_mean("f1"), _mean("em")],
        }
    return ConfigurableTask(config=config)


def _targets(doc: dict[str, Any]) -> list[str]:
    return [doc["answer"]] if isinstance(doc["answer"], str) else [str(answer) for answer in doc["answer"]]


def _score_answer(language: str, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    answer, targets = results[0].strip(), _targets(doc)
    return {"f1": token_f1(answer, targets, language), "em": exact_match(answer, targets, language)}


def _score_summary(language: str, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"rouge_l": rouge_l(results[0].strip(), _targets(doc)[0], language)}


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


# -- MKQA and XLSum from the hub --------------------------------------------------------------------------------------
#
# lm-eval has no usable task for them. Both repositories hold a loading script, which `datasets` no longer runs, so the
# hub's own Parquet files (`refs/convert/parquet`) are listed, because XLSum also has older files with the same rows.
# lm-eval's `afrobench` has XLSum in twelve languages, but its prompt contains the word "text" instead of the article.
# The prompt is the question or article between two words of the language, as in lm-eval's MGSM and XQuAD, without an
# instruction, so that base models can be scored too.

# The words before a question and its answer, in the paper's languages that MKQA has.
QUESTIONS = {
    "en": ("Question", "Answer"),
    "ar": ("سؤال", "إجابة"),
    "de": ("Frage", "Antwort"),
    "es": ("Pregunta", "Respuesta"),
    "fr": ("Question", "Réponse"),
    "ja": ("質問", "回答"),
    "ko": ("질문", "답변"),
    "pt": ("Pergunta", "Resposta"),
    "ru": ("Вопрос", "Ответ"),
    "th": ("คำถาม", "คำตอบ"),
    "tr": ("Soru", "Cevap"),
    "vi": ("Câu hỏi", "Trả lời"),
    "zh": ("问题", "答案"),
}
# XLSum's name of the language, and the words before an article and its summary.
ARTICLES = {
    "en": ("english", "Article", "Summary"),
    "ar": ("arabic", "المقال", "الملخص"),
    "bn": ("bengali", "নিবন্ধ", "সারাংশ"),
    "es": ("spanish", "Artículo", "Resumen"),
    "fr": ("french", "Article", "Résumé"),
    "hi": ("hindi", "लेख", "सारांश"),
    "id": ("indonesian", "Artikel", "Ringkasan"),
    "ja": ("japanese", "記事", "要約"),
    "ko": ("korean", "기사", "요약"),
    "pt": ("portuguese", "Artigo", "Resumo"),
    "ru": ("russian", "Статья", "Краткое содержание"),
    "sw": ("swahili", "Makala", "Muhtasari"),
    "te": ("telugu", "వ్యాసం", "సారాంశం"),
    "th": ("thai", "บทความ", "สรุป"),
    "tr": ("turkish", "Makale", "Özet"),
    "ur": ("urdu", "مضمون", "خلاصہ"),
    "vi": ("vietnamese", "Bài viết", "Tóm tắt"),
    "yo": ("yoruba", "Àyọkà", "Àkótán"),
    "zh": ("chinese_simplified", "文章", "摘要"),
}
FILES = {
    "MKQA": "hf://datasets/apple/mkqa@refs/convert/parquet/mkqa/train/*.parquet",
    "XLSum": "hf://datasets/csebuetnlp/xlsum@refs/convert/parquet/{}/test/*.parquet",
}
NO_SHORT_ANSWER = (1, 2)  # MKQA's types `long_answer` and `unanswerable`, as its class labels number them


def hub_task(name: str, benchmark: str, language: str) -> ConfigurableTask:
    """The task `name` of MKQA or XLSum."""
    if benchmark == "MKQA":
        files, rows = FILES["MKQA"], partial(_questions, language)
    else:
        files, rows = FILES["XLSum"].format(ARTICLES[language][0]), partial(_articles, language)
    source = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": files}}, "process_docs": rows}
    return row_task(name, benchmark, language, source)


def _questions(language: str, data: Any) -> Any:
    """MKQA's rows as `id`, `prompt`, `answer`.

    Only questions with a short answer in every language are kept, so that item i is the same question in each.
    """
    before, after = QUESTIONS[language]

    def question(row: dict[str, Any]) -> dict[str, Any]:
        prompt = f"{before}: {row['queries'][_column(language)]}\n{after}:"
        return {"id": row["example_id"], "prompt": prompt, "answer": _short_answers(row, language)}

    kept = data.filter(lambda row: all(_short_answers(row, code) for code in QUESTIONS))
    return kept.map(question, remove_columns=kept.column_names)


def _column(language: str) -> str:
    return "zh_cn" if language == "zh" else language


def _short_answers(row: dict[str, Any], language: str) -> list[str]:
    """All texts and aliases that count as correct, without duplicates."""
    short = [one for one in row["answers"][_column(language)] if one["type"] not in NO_SHORT_ANSWER]
    texts = [text for one in short for text in (one["text"], *(one["aliases"] or ()))]
    return list(dict.fromkeys(text for text in texts if text))


def _articles(language: str, data: Any) -> Any:
    """XLSum's rows as `id`, `prompt`, `answer`."""
    _, before, after = ARTICLES[language]

    def article(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "prompt": f"{before}: {row['text']}\n{after}:", "answer": row["summary"]}

    return data.map(article, remove_columns=data.column_names)
