"""The layers around an engine, with functions as engines; the cache; the checks of what comes back."""

from __future__ import annotations

import importlib
import json
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from cctuning.errors import UserError
from cctuning.pairing.translation import Answer, open_translator
from cctuning.pairing.translation.translator import CACHE, Cache
from tests.pairing.translation import own_functions
from tests.pairing.translation.conftest import count

HERE = "tests.pairing.translation.own_functions"


@pytest.fixture
def translator(tmp_path):
    opened = []

    def make(name: str, **options):
        opened.append(
            open_translator({"engine": "function", "function": f"{HERE}:{name}", **options}, tmp_path / "cache")
        )
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_each_distinct_segment_is_asked_once(translator):
    own_functions.CALLS.clear()
    texts = ["Mama yangu. Habari za asubuhi?", "Habari za asubuhi?", "", "42", "Mama yangu.\n- Mama yangu."] * 3
    results = list(translator("shift", split="sentences").translate(texts, "sw", "en"))
    expected = ["Momo yongu. Hobori zo osubuhi?", "Hobori zo osubuhi?", "", "42", "Momo yongu.\n- Momo yongu."] * 3
    assert [result.text for result in results] == expected
    assert sorted(text for call in own_functions.CALLS for text in call) == ["Habari za asubuhi?", "Mama yangu."]
    again = translator("shift", split="sentences")
    assert list(again.translate(texts, "sw", "en")) == results and len(own_functions.CALLS) == 1
    assert again.usage()["cache_hits"] == again.usage()["segments"] == 2
    # another language is another translation
    list(again.translate(texts, "sw", "fr"))
    assert len(own_functions.CALLS) == 2


def test_windows_keep_order(translator, monkeypatch):
    monkeypatch.setattr("cctuning.pairing.translation.translator.WINDOW", 7)
    texts = [f"jambo {number}" for number in range(50)]
    results = translator("shift", batch_size=3).translate(texts, "sw", "en")
    assert [result.text for result in results] == [f"jombo {number}" for number in range(50)]


def test_code_and_structure_come_through(translator):
    text = (
        "# Kazi\n\nAndika `baba` na {jina}:\n\n1. kwanza, https://a.example/baba;\n2. pili.\n\n```\nbaba\n```\nAsante."
    )
    expected = (
        "# Kozi\n\nOndiko `baba` no {jina}:\n\n1. kwonzo, https://a.example/baba;\n2. pili.\n\n```\nbaba\n```\nOsonte."
    )
    for split in ("sentences", "long"):
        (result,) = translator("shift", split=split).translate([text.replace("Andika", "andika")], "sw", "en")
        assert result.text == expected.replace("Ondiko", "ondiko").replace("Osonte", "Asonte")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("blank", "empty translation"),
        ("lines", "more lines than the source"),
    ],
)
def test_what_cannot_be_a_translation_is_a_problem(translator, text, problem):
    results = list(translator("by_word", split="sentences").translate([f"Sawa! {text}.", "Sawa!"], "sw", "en"))
    assert results[0].text is None and problem in results[0].problem and text[:30] in results[0].problem
    assert results[1] == Answer("<Sawa!>")


def test_a_lost_marker_is_mended_by_the_second_way(translator):
    one = translator("by_word")
    (result,) = one.translate(["Weka mark kwa `baba` leo."], "sw", "en")
    assert result.text == "Weka mark kwa `baba`<leo.>".replace("<leo.>", " <leo.>")
    assert one.usage()["second_way"] == 1


def test_spaces_between_sentences_follow_the_target(translator):
    one = translator("by_word", split="sentences")
    assert next(one.translate(["Sema chinese. Sema chinese tena."], "sw", "zh")).text == "你好。你好。"
    assert (
        next(one.translate(["说 english。说 english 吧。\n说 english。"], "zh", "en")).text == "Hello. Hello.\nHello."
    )


@pytest.mark.parametrize(
    "function, message",
    [
        (f"{HERE}:one_short", "expected a list of 2 translations.*got 1"),
        (f"{HERE}:nothing", "expected a list of 2 translations.*got NoneType"),
        (
            f"{HERE}:raises",
            r"raised ValueError \(no such word\) at own_functions.py:\d+ for one of 2 texts, .* 'moja'; correct",
        ),
        (f"{HERE}:numbers", "expected text for 'moja', got 4"),
        (f"{HERE}:NOT_CALLABLE", "has no function 'NOT_CALLABLE'"),
        (f"{HERE}:absent", "has no function 'absent'"),
        ("no_such_module_1:f", "no module 'no_such_module_1'"),
        ("no_colon", "expected module:name"),
    ],
)
def test_bad_functions_are_one_line(function, message, tmp_path):
    with pytest.raises(UserError, match=message):
        list(
            open_translator({"engine": "function", "function": function}, tmp_path).translate(
                ["moja", "mbili"], "sw", "en"
            )
        )


def test_a_changed_function_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    for word in ("news", "news", "hello"):
        (tmp_path / "users_own.py").write_text(
            f"def f(texts, source, target):\n    return ['{word}' for _ in texts]\n"
        )
        sys.modules.pop("users_own", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its time stamps are too coarse for this test
        translator = open_translator({"engine": "function", "function": "users_own:f"}, tmp_path / "cache")
        said.append((next(translator.translate(["habari"], "sw", "en")).text, translator.usage()["cache_hits"]))
        translator.close()
    assert said == [("news", 0), ("news", 1), ("hello", 0)]


def test_a_crash_of_the_function_keeps_what_was_done_before(translator, monkeypatch):
    own_functions.CALLS.clear()
    shift = own_functions.shift

    def fails_later(texts, source, target):
        if len(own_functions.CALLS) == 2:
            raise RuntimeError("the user's own fault")
        return shift(texts, source, target)

    monkeypatch.setattr(own_functions, "shift", fails_later)
    texts = [f"baba {number}" for number in range(10)]
    with pytest.raises(
        UserError, match=r"raised RuntimeError .the user's own fault. at .* 3 texts, the first of them 'baba 6'"
    ):
        list(translator("shift", batch_size=3).translate(texts, "sw", "en"))
    monkeypatch.setattr(own_functions, "shift", shift)
    again = translator("shift", batch_size=3)
    assert len(list(again.translate(texts, "sw", "en"))) == 10 and again.usage()["cache_hits"] == 6


def test_cache_is_safe_for_threads_and_processes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cctuning.pairing.translation.translator import Answer, Cache\n"
        "c = Cache(Path(sys.argv[1]))\n"
        "for n in range(300): c.put(c.key({}, str(n)), Answer(f'said {n}'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    cache = Cache(tmp_path)

    def put(start):
        for number in range(start, start + 100):
            cache.put(cache.key({}, str(number)), Answer(f"said {number}"))

    threads = [threading.Thread(target=put, args=(start,)) for start in (300, 350)]
    while count(tmp_path) == 0 and process.poll() is None:  # until the other process writes too
        time.sleep(0.02)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    assert count(tmp_path) == 450
    assert cache.get(cache.key({}, "299")) == Answer("said 299") and cache.get(cache.key({"other": 1}, "299")) is None


def test_passing_problems_are_not_kept_and_lasting_ones_are(tmp_path):
    cache = Cache(tmp_path)
    cache.put(b"1", Answer(None, "busy", passing=True))
    cache.put(b"2", Answer(None, "cut off"))
    assert cache.get(b"1") is None and cache.get(b"2") == Answer(None, "cut off")


def test_a_file_that_is_no_cache_is_one_line(tmp_path):
    (tmp_path / CACHE).write_text(json.dumps({"not": "a database"}) * 100)
    with pytest.raises(UserError, match=f"{CACHE}: cannot be used as a cache"):
        Cache(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / CACHE) as file:
        file.execute("CREATE TABLE answers (something TEXT)")
    with pytest.raises(UserError, match="cannot be used as a cache"):
        Cache(other)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a cache"):
        Cache(tmp_path / "file")
