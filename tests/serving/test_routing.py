"""Which of base and adapter a prompt is sent to."""

from __future__ import annotations

import gzip
import json

import pytest

from cctuning.errors import UserError
from cctuning.serving.routing import Router

SENTENCES = {
    "en": "What is the capital of Kenya, and how many people live there?",
    "sw": "Mji mkuu wa Kenya ni upi, na watu wangapi wanaishi huko?",
    "fr": "Quelle est la capitale du Kenya, et combien de gens y habitent ?",
    "th": "เมืองหลวงของเคนยาคือเมืองอะไร และมีคนอาศัยอยู่กี่คน",
    "ar": "ما هي عاصمة كينيا وكم عدد سكانها؟",
}


@pytest.fixture(scope="module")
def router():
    return Router("en", base="the-base", adapter="sw", languages=["sw", "th"])


def test_english_has_the_base_and_every_other_language_the_adapter(router):
    for code, sentence in SENTENCES.items():
        expected = "the-base" if code == "en" else "sw"
        assert router.model(sentence) == expected, code  # detected
        assert router.model("…", code) == expected, code  # told
    assert router.model("…", "en-GB") == router.model("…", "eng") == "the-base"
    assert router.model("…", "zh-Hant") == "sw"
    for doubtful in ("", "42 * 7 = ", "https://example.org/a-page-in-english"):
        assert router.model(doubtful) == "sw", doubtful


def test_of_messages_the_users_last_counts(router):
    asked = [{"role": "user", "content": SENTENCES["sw"]}, {"role": "assistant", "content": "Nairobi."}]
    english = {"role": "user", "content": SENTENCES["en"]}
    assert router.model([*asked, english]) == "the-base" and router.model([english, *asked]) == "sw"
    parts = [{"type": "image_url", "image_url": {}}, {"type": "text", "text": SENTENCES["en"]}]
    assert router.model([{"role": "user", "content": parts}]) == "the-base"


def test_another_language_can_be_the_reference():
    router = Router("fr", base="the-base", adapter="ht", languages=["ht"])
    assert router.model(SENTENCES["fr"]) == "the-base" and router.model(SENTENCES["en"]) == "ht"


def test_bad_requests_are_named(router):
    for call, pattern in (
        (lambda: router.model("x", "Swahily"), "lang: unknown language 'Swahily'; .*Did you mean 'sw'"),
        (lambda: router.model([{"role": "system", "content": "x"}]), "none is the user's"),
        (lambda: Router("en", base="a", adapter="b", sure=1.5), "sure: expected a confidence"),
        (lambda: Router("ha", base="a", adapter="b").model("x"), "lingua cannot detect it"),
    ):
        with pytest.raises(UserError, match=pattern):
            call()


def test_questions_of_real_length_are_told_apart(data_dir):
    """School problems: English never misses the base; Swahili and Russian all but never meet it."""
    router = Router("en", base="base", adapter="tuned", languages=["sw", "ru"])
    for code in ("sw", "ru"):
        with gzip.open(data_dir / "sft" / "gsm8k_questions" / f"{code}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(next(file)) for _ in range(200)]
        assert all(router.model(row["prompt_en"]) == "base" for row in rows)
        assert sum(router.model(row["prompt"]) == "base" for row in rows) <= 2
