"""The checks: each finds its fault, says it, can be turned off, and lets what is right pass."""

from __future__ import annotations

import bz2
import json
import lzma
import random

import datasets
import pytest

from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.options import Checks
from cctuning.pairing.row_checks import Candidate, inspect
from tests.pairing.world import CHINESE, SWAHILI, paired, run, write

LONG = "Lions live in groups, hunt at night and sleep for most of the day in the shade of trees."


def reasons(prompt, english, lang="sw", response=None, english_response=None, **checks):
    """The checks that have something against one row."""
    row = Candidate(prompt, response, lang, english, english_response, "rows.jsonl:1")
    problems, figures = inspect(row, Checks(**checks), "en")
    assert (figures is None) == bool(problems)
    assert all(problem.says for problem in problems)
    return [problem.check for problem in problems]


@pytest.mark.parametrize("row", paired(SWAHILI) + paired(CHINESE))
def test_good_rows_pass(row):
    assert reasons(row["prompt"], row["prompt_en"], row["lang"], row["response"]) == []


@pytest.mark.parametrize(
    "prompt, english, lang, reason",
    [
        ("Die Katze schläft auf dem alten Sofa.", "The cat is asleep on the old sofa.", "sw", "language"),
        ("The cat is asleep on the old sofa.", "Paka amelala kwenye sofa ya zamani.", "sw", "language"),  # swapped
        ("The cat is asleep on the old sofa.", "猫在旧沙发上睡觉。", "zh", "script"),
        ("The cat is asleep.", "The cat is  asleep.", "sw", "copy"),
        ("Кошка спит на старом диване.", "The cat is asleep on the old sofa.", "th", "script"),
        ("Paka wana miguu 5.", "Cats have 4 legs.", "sw", "numbers"),
        ("siku ya kwanza na " * 12, "On the first day and on the second day he slept.", "sw", "repeat"),
    ],
)
def test_each_fault_is_found(prompt, english, lang, reason):
    assert reason in reasons(prompt, english, lang)
    off = {"check_language": 0, "check_script": 0, "check_copy": 0, "check_numbers": False, "check_repeat": 0}
    assert reasons(prompt, english, lang, **off) == []


@pytest.mark.parametrize("lang", ["sw", "tr", "de"])
def test_a_side_left_in_the_others_language_is_told_though_they_share_words(lang):
    prompt, english = (
        "Which country is it that has the largest area?",
        "Which country in Africa is the largest by area?",
    )
    assert reasons(prompt, english, lang) == ["language"]
    assert reasons(prompt, english, lang, check_language=0) == reasons(prompt, english, "en") == []


def test_a_parallel_left_in_the_rows_language_is_told_though_they_share_words():
    told = reasons("Ni nchi gani kubwa zaidi kwa eneo barani?", "Nchi gani ni kubwa zaidi barani Afrika kwa eneo?")
    assert told == ["language"]


@pytest.mark.parametrize(
    "ask, lang",
    [
        ("Tafsiri:", "sw"),
        ("Çevir:", "tr"),
        ("Übersetze:", "de"),
        ("Traduce:", "es"),
        ("Traduza:", "pt"),
        ("Dịch:", "vi"),
    ],
)
def test_a_short_request_about_a_sentence_of_the_reference_language_is_no_fault(ask, lang):
    quote = "The early bird catches the worm, but the second mouse gets the cheese."
    assert reasons(f"{ask} {quote}", f"Translate: {quote}", lang, check_copy=0) == []


def test_names_that_both_sides_share_are_no_fault():
    names = "Katherine Maher, Wikimedia Foundation"
    assert reasons(f"DE: {names}, CEO da {names}", f"FROM: {names}, CEO of {names}", "pt-BR") == []
    assert reasons("Min kamera: Nikon Coolpix.", "My camera: a Nikon Coolpix.", "sv") == []


def test_text_of_another_language_that_both_sides_quote_is_no_fault():
    quote = "The early bird catches the worm, but the second mouse gets the cheese."
    assert reasons(f"翻译成中文：{quote}", f"Translate into Chinese: {quote}", "zh") == []
    code = "for i in range(10):\n    print(i, 'is a number')"
    assert reasons(f"Eleza msimbo huu:\n```\n{code}\n```", f"Explain this code:\n```\n{code}\n```") == []


def test_a_formula_may_be_the_same_on_both_sides():
    assert reasons("12 + 30 = ?", "12 + 30 = ?") == []


def test_a_leaked_response_is_found_and_one_that_the_prompt_holds_by_right_is_not():
    ask, asked = "Eleza simba wanaishi vipi.", "Explain how lions live."
    response = "Simba huishi kwa makundi, huwinda usiku na hulala mchana kutwa kwenye kivuli cha miti."
    assert reasons(ask, asked, response=response, english_response=LONG) == []
    assert reasons(ask, f"{asked} {LONG}", response=response, english_response=LONG) == ["leak"]
    assert "leak" in reasons(ask, f"{asked} {response}", response=response)
    assert "leak" in reasons(ask, f"{asked} {response}", response=response, check_leak=0)  # train would refuse it
    both = f"Sahihisha: {response}", f"Correct: {LONG}"
    assert reasons(*both, response=response, english_response=LONG) == []
    assert reasons("Siku 4 na siku 5?", "4 days and 5 days?", response="9") == []


def test_a_row_that_is_its_own_parallel_is_checked_too():
    assert reasons("Where does the cat sleep at night?", None, "en") == []
    assert reasons("Paka hulala wapi wakati wa usiku?", None, "en") == ["language"]


# -- what all rows together show ------------------------------------------------------------------------------------


def many(count=300, seed=0):
    """Rows whose prompt is about as long as their parallel, each closed by a full stop."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = rng.randrange(8, 14)
        english = " ".join(rng.choice(["bird", "house", "river", "stone"]) for _ in range(words)).capitalize()
        text = " ".join(rng.choice(["ndege", "nyumba", "mto", "jiwe"]) for _ in range(words)).capitalize()
        row = {"id": number, "lang": "sw", "prompt": f"{text} {number}.", "prompt_en": f"{english} {number}."}
        rows.append(row)
    return rows


def rejected(tmp_path, rows, **checks):
    checks = {"check_language": 0, "check_repeat": 0, **checks}
    card, kept, rejects = run(tmp_path, {"path": write(tmp_path / "r.jsonl", rows), "way": "given"}, checks=checks)
    assert card["rows"] == len(kept) and len(kept) + len(rejects) == len(rows)
    return {(reject["row"]["id"], reject["reason"]) for reject in rejects}, card


def test_length_and_ending_are_learned_from_the_rows(tmp_path):
    rows = many()
    assert rejected(tmp_path, rows)[0] == set()
    rows[7]["prompt"] += " ndege" * 60 + "."  # far too long
    rows[8]["prompt"] = rows[8]["prompt"][:25].rstrip("., ")  # cut off
    found, card = rejected(tmp_path / "again", rows) if (tmp_path / "again").mkdir() is None else None
    assert found == {(7, "length"), (8, "ending")}
    assert 0.9 < card["usual"]["sw"]["ratio"] < 1.3 and card["usual"]["sw"]["closes"][0] > 0.9


def test_words_on_both_sides_do_not_count_on_one_alone(tmp_path):
    """`Antigua na Barbuda` beside `Antigua & Barbuda` is not a third of its length."""
    rows = [{**row, "prompt": f"Mji wa {n}", "prompt_en": f"City of {n}"} for n, row in enumerate(many())]
    rows[7] |= {"prompt": "Antigua na Barbuda 7", "prompt_en": "Antigua & Barbuda 7"}
    assert rejected(tmp_path, rows, check_language=0, check_copy=0)[0] == set()


def test_quotations_and_items_of_lists_end_without_a_final_mark(tmp_path):
    rows = many()
    rows[7] |= {"prompt": f"„{rows[7]['prompt']}“", "prompt_en": f"“{rows[7]['prompt_en']} {'x' * 9}.”"}
    rows[8]["prompt_en"] = rows[8]["prompt_en"].rstrip(".")[:-3] + ";"  # an item, and the prompt has its full stop off
    rows[8]["prompt"] = rows[8]["prompt"][:-12].rstrip(". ")
    rows[9]["prompt"] = rows[9]["prompt"][:25].rstrip("., ")  # cut off
    assert rejected(tmp_path, rows, check_numbers=False)[0] == {(9, "ending")}


def test_where_a_language_does_not_close_its_sentences_not_closing_is_no_fault(tmp_path):
    rows = [{**row, "prompt": row["prompt"].rstrip(".")} for row in many()]
    assert rejected(tmp_path, rows)[0] == set()


def test_few_rows_teach_nothing_but_what_is_absurd_is_found(tmp_path):
    rows = many(10)
    rows[3]["prompt"] = "mto" * 500 + " 3."
    assert rejected(tmp_path, rows)[0] == {(3, "length")}


def test_duplicates_are_told_and_the_first_stays(tmp_path):
    rows = many(20)
    rows.append({**rows[4], "id": "again", "prompt": rows[4]["prompt"].upper() + " "})
    rows.append({**rows[4], "id": "answered", "response": "ndiyo"})  # another row: it has an answer
    rows.append({**rows[5], "id": "called", "response": "", "tools": [{"name": "look", "parameters": {}}]})
    rows.append({**rows[5], "id": "thought", "response": "ndiyo", "thinking": "Labda."})
    rows.append({**rows[5], "id": "not thought", "response": "ndiyo"})
    assert rejected(tmp_path, rows)[0] == {("again", "duplicate")}


# -- evaluation texts -----------------------------------------------------------------------------------------------


@pytest.fixture
def benchmarks(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    items = [{"question": f"How many of the {n} birds in the old garden can sing at night?"} for n in range(30)]
    items += [
        {"premise": LONG, "label": "cause"},
        {"premise": "He raised his hand."},
        {"premise": "白色的猫在桌子上。"},
    ]
    write(tmp_path / "deep" / "er" / "test.jsonl.gz", [{"meta": {"text": item}} for item in items])
    return Benchmarks.read([str(tmp_path / "deep")])


def test_evaluation_texts_are_found_whole_and_in_parts(benchmarks):
    def hit(text):
        return benchmarks.hit([text], [], 0.6)

    assert "test.jsonl.gz:31 (meta.text.premise)" in hit(f"Is this true? {LONG}")
    assert hit(LONG.upper().replace(",", " - "))  # punctuation and case do not hide it
    assert hit(LONG.replace("Lions", "Tigers"))
    assert hit("he raised his hand") and not hit("he raised his hand and asked")  # a short one as a whole alone
    assert hit("白色的猫在桌子上。") and not hit("白色的猫在花园里。")
    assert not hit("Lions live in groups and eat meat when they are hungry enough to hunt for it.")


def test_compressed_files_of_evaluation_texts_are_read(tmp_path):
    for number, (ending, module) in enumerate({".bz2": bz2, ".xz": lzma, "": None}.items()):
        text = json.dumps({"question": f"Which of the {number} old birds in the garden can sing well at night?"})
        file = tmp_path / f"{number}.jsonl{ending}"
        file.write_bytes(module.compress(text.encode()) if module else text.encode())
    found = Benchmarks.read([str(tmp_path)])
    assert len(found.fingerprints) == 3
    for number in range(3):
        assert found.hit([f"Which of the {number} old birds in the garden can sing well at night?"], [], 0.6)


def test_every_split_of_a_saved_data_set_is_read(tmp_path):
    def asked(number):
        return f"Which of the {number} old birds in the garden can sing well at night?"

    parts = {name: datasets.Dataset.from_dict({"q": [asked(n)]}) for n, name in enumerate(("train", "test"))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "deep" / "splits"))
    datasets.Dataset.from_dict({"q": [asked(2)]}).save_to_disk(str(tmp_path / "deep" / "one"))
    found = Benchmarks.read([str(tmp_path)])
    assert all(found.hit([asked(number)], [], 0.6) for number in range(3)) and len(found.origins) == 3


def test_plain_text_is_read_by_line_and_what_cannot_be_read_is_noted(tmp_path):
    folder = tmp_path / "eval"
    folder.mkdir()
    flores = folder / "eng_Latn.devtest"
    flores.write_text(f"A short first line.\n{LONG}\n", encoding="utf-8")
    for paths in ([str(flores)], [str(folder)]):
        found = Benchmarks.read(paths)
        assert "eng_Latn.devtest:2 (line)" in found.hit([LONG], [], 0.6) and not found.notes
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / "image.bin").write_bytes(b"\x89PNG\xff\n\xfe")
    (folder / "wide.txt").write_text("x y z", encoding="utf-16")
    (folder / "info.json").write_text('{\n "features": 1\n}\n')
    found = Benchmarks.read([str(folder)])
    assert len(found.fingerprints) == 4 and [note.split(", first: ")[1].split(": ")[0] for note in found.notes] == [
        f"{folder}/{name}" for name in ("image.bin:1", "info.json:1", "wide.txt")
    ]
    assert found.notes[0].startswith("against: 2 records or lines cannot be read")
    source = {"path": write(tmp_path / "rows.jsonl", many(3)), "way": "given"}
    assert set(found.notes) < {*run(tmp_path, source, against=[str(folder)])[0]["notes"]}


def test_what_many_items_share_is_their_template(benchmarks):
    """Twenty items and more ask alike; what is left of each is too little to say anything."""
    assert not benchmarks.hit(["How many of the 99 birds in the old garden can sing at night?"], [], 0.6)


def test_a_short_answer_is_not_looked_up(benchmarks):
    assert not benchmarks.hit(["What did he do?"], ["He raised his hand."], 0.6)
    assert benchmarks.hit(["What do lions do?"], [LONG], 0.6)
