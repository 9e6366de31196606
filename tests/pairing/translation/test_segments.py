"""Cutting loses nothing, respects the scripts' marks, and never cuts what is protected."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from cctuning.pairing.translation.segments import line_marks, protected, split

DATA = Path(os.environ.get("CC_TUNING_DATA") or Path(__file__).parents[3].parent / "shared" / "data")

# parts of texts, joined at random by the property tests
PARTS = [
    "Habari. ", "How are you? ", "Dr. Smith e.g. said so. ", "你好。", "世界！", "「好。」", "यह है। ",
    "كيف حالك؟ ", "สวัสดีครับ ", "ありがとう。", "\n", "\n\n", "  \n\t", "\r\n", "1. ", "- ", "* ", "## ", "> ",
    "a) ", "、", "   ", "\u00a0", "\u200d", "👩‍👩‍👧 ", "e\u0301", "```py\nx = 1. y\n```", "```", "~~~\n",
    "`a. b`", "``", "$$x. y$$", r"\(a. b\)", "https://a.example/b.c?d=1. ", "www.x.org/路径。", "me@x.example ",
    "{name}", "{{x. y}}", "${a}", "%s", "%(n)d", "<b>", "</b>", "<|im_end|>", "&nbsp;", "[[0]]", "[[12]]",
    "3.14", "1,000.50", "99%", "word" * 30, "字" * 50, ".", "…", "?!", "“Quoted.” ", "(so.) ",
]  # fmt: skip


def texts(seed: int, count: int = 400):
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.choice(PARTS) for _ in range(draw.randint(0, 25)))


@pytest.mark.parametrize("sentences", [True, False])
def test_nothing_is_lost_and_nothing_protected_is_cut(sentences):
    for text in texts(1):
        spans, blocks = protected(text)
        for max_chars in (20, 60, 1000):
            pieces = split(text, max_chars, sentences, spans, blocks)
            assert "".join(piece.text for piece in pieces) == text
            assert all(piece.text for piece in pieces)
            bounds, at = set(), 0
            for piece in pieces:
                bounds.add(at)
                at += len(piece.text)
                if not piece.kept:
                    longest = max((end - start for start, end in piece.spans), default=0)
                    assert len(piece.text) <= max(max_chars, longest)
                    assert piece.text == piece.text.strip()
                    assert not sentences or "\n" not in piece.text or piece.spans
            for start, end in spans + blocks:
                assert not any(start < bound < end for bound in bounds)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hi there. How are you? Fine!", ["Hi there.", "How are you?", "Fine!"]),
        (
            "Dr. Smith, e.g. J. R. Tolkien, paid 3.50. He left.",
            ["Dr. Smith, e.g. J. R. Tolkien, paid 3.50.", "He left."],
        ),
        ("It costs $5. And $6.", ["It costs $5.", "And $6."]),
        ("He said “Go.” She went.", ["He said “Go.”", "She went."]),
        ("你好。他说：「走吧。」她走了！好？", ["你好。", "他说：「走吧。」", "她走了！", "好？"]),
        ("これはペンです。あれは本です。", ["これはペンです。", "あれは本です。"]),
        ("यह एक वाक्य है। यह दूसरा है॥ तीसरा", ["यह एक वाक्य है।", "यह दूसरा है॥", "तीसरा"]),
        ("كيف حالك؟ أنا بخير. شكرا", ["كيف حالك؟", "أنا بخير.", "شكرا"]),
        ("آپ کیسے ہیں؟ میں ٹھیک ہوں۔ شکریہ", ["آپ کیسے ہیں؟", "میں ٹھیک ہوں۔", "شکریہ"]),
        ("ကျေးဇူးပါ။ နေကောင်းလား။", ["ကျေးဇူးပါ။", "နေကောင်းလား။"]),
        ("ሰላም ነው። ደህና ነኝ።", ["ሰላም ነው።", "ደህና ነኝ።"]),
        ("สวัสดีครับ ผมชื่อจอห์น\nยินดีครับ", ["สวัสดีครับ ผมชื่อจอห์น", "ยินดีครับ"]),
    ],
)
def test_sentences_end_at_the_marks_of_their_script(text, expected):
    assert [piece.text for piece in split(text, 400, True) if not piece.kept] == expected


def test_a_long_stretch_is_cut_where_it_hurts_least():
    thai = "สวัสดีครับ ผมชื่อจอห์น ยินดีที่ได้รู้จัก " * 4
    for piece in split(thai, 60, True):
        assert len(piece.text) <= 60 and (piece.kept or f" {piece.text} " in f" {thai}")
    pieces = [piece.text for piece in split("moja mbili tatu nne tano sita", 20, True) if not piece.kept]
    assert pieces == ["moja mbili tatu nne", "tano sita"]


def test_line_structure_is_kept_apart():
    text = "# Kichwa\n\n1. Kwanza. Halafu.\n   - ndani\n2) Pili\n> nukuu\n十、中文\n3、第三"
    kept = [piece.text for piece in split(text, 400, True) if piece.kept and piece.text.strip()]
    assert [mark.strip() for mark in kept] == ["#", "1.", "-", "2)", ">", "3、"]
    assert line_marks(text) == ["#", "1.", "-", "2)", ">", "", "3、"]


def test_what_holds_no_letters_is_kept():
    assert all(piece.kept for piece in split("42\n--- !!! 3.14\n\n", 400, True))
    assert split("", 400, True) == []


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set CC_TUNING_DATA")
@pytest.mark.parametrize(
    "path", ["sft/alpaca/zh.jsonl.gz", "sft/gsm8k_questions/sw.jsonl.gz", "parallel/tico19/my.jsonl.gz"]
)
def test_real_texts_come_together_again(path):
    if not (DATA / path).exists():
        pytest.skip(f"{DATA / path} is absent")
    with gzip.open(DATA / path, "rt", encoding="utf-8") as file:
        for _, line in zip(range(500), file, strict=False):
            for text in (value for value in json.loads(line).values() if isinstance(value, str)):
                spans, blocks = protected(text)
                pieces = split(text, 200, True, spans, blocks)
                assert "".join(piece.text for piece in pieces) == text
