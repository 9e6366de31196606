"""Build tasks for MKQA and XLSum from the hub, for which lm-eval has no usable task.

Both repositories hold a loading script, which `datasets` no longer runs, so the hub's own Parquet files
(`refs/convert/parquet`) are read by name: XLSum also has older files with the same rows. lm-eval's `afrobench` has
XLSum in twelve languages, but its prompt contains the word "text" instead of the article.

The prompt is the question or article between two words of the language, as in lm-eval's MGSM and XQuAD, without an
instruction, so that base models can be scored too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lm_eval.api.task import ConfigurableTask

from cctuning.evaluation.row_tasks import row_task

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
    kept = data.filter(_has_answers)
    return kept.map(partial(_question, language), remove_columns=kept.column_names)


def _has_answers(row: dict[str, Any]) -> bool:
    return all(_short_answers(row["answers"][_column(language)]) for language in QUESTIONS)


def _question(language: str, row: dict[str, Any]) -> dict[str, Any]:
    before, after = QUESTIONS[language]
    column = _column(language)
    prompt = f"{before}: {row['queries'][column]}\n{after}:"
    return {"id": row["example_id"], "prompt": prompt, "answer": _short_answers(row["answers"][column])}


def _column(language: str) -> str:
    return "zh_cn" if language == "zh" else language


def _short_answers(answers: list[dict[str, Any]]) -> list[str]:
    """All texts and aliases that count as correct, without duplicates."""
    short = [one for one in answers if one["type"] not in NO_SHORT_ANSWER]
    texts = [text for one in short for text in (one["text"], *(one["aliases"] or ()))]
    return list(dict.fromkeys(text for text in texts if text))


def _articles(language: str, data: Any) -> Any:
    return data.map(partial(_article, language), remove_columns=data.column_names)


def _article(language: str, row: dict[str, Any]) -> dict[str, Any]:
    _, before, after = ARTICLES[language]
    return {"id": row["id"], "prompt": f"{before}: {row['text']}\n{after}:", "answer": row["summary"]}
