"""Rows nobody here wrote load without a false alarm. They lie outside the repository; `CC_TUNING_DATA` says where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cctuning.data import Source, load_rows

DATA = Path(os.environ.get("CC_TUNING_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set CC_TUNING_DATA")
PARALLEL = {"prompt": "text", "reference": "text_en"}


def source(path, **options):
    if not (DATA / path).exists():
        pytest.skip(f"{DATA / path} is absent")
    return Source(str(DATA / path), **options)


@pytest.mark.parametrize(
    "path, count", [("sft/alpaca/zh.jsonl.gz", 10_000), ("sft/gsm8k_questions/sw.jsonl.gz", 2500)]
)
def test_answered_rows(path, count):
    dataset, report = load_rows([source(path)])
    assert len(dataset) == report.with_response == count and not report.skipped
    left = {"sft/gsm8k_questions/sw.jsonl.gz": "4 of 2500 rows outside English have their own prompt"}  # untranslated
    assert [note[: len(left.get(path, ""))] for note in report.notes] == ([left[path]] if path in left else [])
    assert None not in dataset["reference"][:10]


def test_english_rows_of_several_languages_are_shared():
    sources = [
        source(f"sft/gsm8k_questions/{lang}.jsonl.gz", limit=100, include_reference_rows=True) for lang in ("sw", "zh")
    ]
    _, report = load_rows(sources)
    assert report.languages == {"sw": 100, "zh": 100, "en": 100}


@pytest.mark.parametrize("path", ["parallel/tatoeba/fra.jsonl.gz", "parallel/tico19/sw.jsonl.gz"])
def test_rows_without_answers(path):
    dataset, report = load_rows([source(path, columns=PARALLEL, limit=500)])
    assert len(dataset) == report.without_response == 500 and len(report.notes) == 1


def test_a_row_that_gives_its_answer_away_is_found():
    """A translation task whose English parallel is the wanted translation."""
    _, report = load_rows([source("sft/seed_tasks/ru.jsonl.gz", bad_rows="skip")])
    assert [skip.origin.rpartition(":")[2] for skip in report.skipped] == ["94"]
