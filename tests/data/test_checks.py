"""Rows that are well formed and would train with the method off: each is a note with its count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cctuning.data import load_parallel, load_rows
from cctuning.identify import between

PAIRS = {
    "sw": [
        ("Mji mkuu wa Kenya ni upi na uko wapi?", "What is the capital of Kenya and where is it?"),
        ("Dalili hizi zimekuwa zikiendelea kwa muda gani?", "How long have these symptoms been going on?"),
        ("Ni watu wangapi wanaishi katika jiji hilo?", "How many people live in that city?"),
    ],
    "ru": [
        ("Как долго продолжаются эти симптомы?", "How long have these symptoms been going on?"),
        ("Сколько человек живёт в этом городе?", "How many people live in that city?"),
    ],
}
ROWS = [
    {"prompt": prompt, "response": f"{lang}{place}", "lang": lang, "prompt_en": english}
    for lang, pairs in PAIRS.items()
    for place, (prompt, english) in enumerate(pairs)
]
ENGLISH = {"prompt": "How many rivers are there?", "response": "Two.", "lang": "en", "prompt_en": None}


def notes(tmp_path: Path, rows: list[dict], **options) -> list[str]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [note.replace(str(path), "F") for note in load_rows([str(path)], **options)[1].notes]


def test_good_rows_have_none(tmp_path):
    assert notes(tmp_path, [*ROWS, ENGLISH]) == []
    assert notes(tmp_path, [row | {"prompt_en": row["prompt"]} for row in ROWS], require_reference=False) == []


@pytest.mark.parametrize("label", ["en", "eng_Latn", "English"])
def test_all_rows_labelled_as_the_reference_language(tmp_path, label):
    first, second = notes(tmp_path, [row | {"lang": label} for row in ROWS])
    assert first.startswith("F: 5 rows are labelled en, the reference language, and have a parallel (prompt_en)")
    assert second.startswith("all 5 rows are labelled en (English), the reference language")


def test_some_rows_labelled_as_the_reference_language(tmp_path):
    (only,) = notes(tmp_path, [*ROWS, ROWS[0] | {"lang": "en"}, ENGLISH | {"prompt_en": ENGLISH["prompt"]}])
    assert only.startswith("F: 1 rows are labelled en")


def test_prompt_and_parallel_swapped(tmp_path):
    (only,) = notes(tmp_path, [row | {"prompt": row["prompt_en"], "prompt_en": row["prompt"]} for row in ROWS])
    assert "seem to be swapped; of rows sampled in Swahili (3 of 3), Russian (2 of 2)" in only


def test_parallels_that_are_the_prompt_or_in_its_language(tmp_path):
    (same,) = notes(tmp_path, [*ROWS, ROWS[0] | {"prompt_en": ROWS[0]["prompt"].upper() + " "}])
    assert same.startswith("1 of 6 rows outside English have their own prompt as the parallel (the first: F:6)")
    (own,) = notes(tmp_path, [row | {"prompt_en": "Je? " + row["prompt"]} for row in ROWS])
    assert own.startswith("parallels are in the row's language, not in English") and "Swahili (3 of 3)" in own
    (foreign,) = notes(tmp_path, [row | {"prompt": "Tell me. " + row["prompt_en"]} for row in ROWS])
    assert foreign.startswith("prompts are in English, not in the row's language")


def test_conversations_are_read_as_well(tmp_path):
    turns = [
        {
            "messages": [{"role": "user", "content": row["prompt_en"]}, {"role": "assistant", "content": "x"}],
            "messages_en": [{"role": "user", "content": row["prompt"]}],
            "lang": row["lang"],
        }
        for row in ROWS
    ]
    assert "seem to be swapped" in notes(tmp_path, turns)[0]


def test_the_columns_of_the_reference_may_be_named_in_any_way(tmp_path):
    for name in ("prompt_eng_Latn", "prompt_english", "prompt_en-GB"):
        rows = [{**{key: row[key] for key in ("prompt", "response", "lang")}, name: row["prompt_en"]} for row in ROWS]
        assert notes(tmp_path, rows) == [] == notes(tmp_path, rows, reference_language="eng")


def test_two_languages_told_apart():
    assert between("How many people live in that city?", "en", "sw") > 0.9
    assert between("这条河每年春天都会泛滥", "zh", "en") == 1.0 and between("ሰላም ነው ወይ", "am", "en") == 1.0
    assert between("Yara suna wasa a gida yau da safe.", "ha", "en") > 0.5 > between("They play at home.", "ha", "en")
    assert between("a", "id", "ms") is None and between("a", "ha", "yo") is not None


def test_words_with_digits_are_not_identified(tmp_path):
    rows = [
        {"prompt": f"x{n} x2 x3 x4 x5 x6", "response": "a", "lang": "sw", "prompt_en": f"w{n} w2 w3 w4 w5 w6"}
        for n in range(8)
    ]
    assert notes(tmp_path, rows) == []
    pairs = [{"text": row["prompt"], "text_en": row["prompt_en"], "lang": "sw"} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert load_parallel([str(tmp_path / "pairs.jsonl")])[1].notes == []
