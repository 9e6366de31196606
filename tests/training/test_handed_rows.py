"""Rows handed to `CCTrainer` as a data set: the layouts and the checks of `load_rows`."""

from __future__ import annotations

import pytest
from datasets import Dataset

from cctuning import CCTrainer, ConnectionConfig
from cctuning.errors import UserError
from tests.data.parallel_files import PAIRS, SWAHILI
from tests.training.test_trainer import config
from tests.training.toys import model, tokenizer

ROW = {"prompt": "x1 x2", "response": "w5", "prompt_en": "w1 w2", "lang": "sw"}
HOME = {"prompt": "w1 w2", "response": "w5", "prompt_en": None, "lang": "en"}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def made(path, rows, connection=None, eval_dataset=None, **options) -> CCTrainer:
    return CCTrainer(
        model(),
        config(path, shuffle_dataset=False, **options),
        ConnectionConfig(**{"connection": "gated", **(connection or {})}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=eval_dataset,
        processing_class=tokenizer(chat=True),
    )


def texts(trainer: CCTrainer) -> list[tuple[str, str, str]]:
    """Of each row: all of it, what is learned, the reference."""
    decode = trainer.processing_class.decode
    return [
        (
            decode(row["input_ids"]),
            decode([token for token in row["labels"] if token != -100]),
            decode(row["reference_input_ids"]),
        )
        for row in trainer.train_dataset
    ]


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": user("x1 x2"), "completion": said("w5"), "prompt_en": user("w1 w2"), "lang": "sw"},
        {"prompt": user("x1 x2"), "response": "w5", "reference": user("w1 w2") + said("w5"), "lang": "sw"},
        {"messages": user("x1 x2") + said("w5"), "messages_en": user("w1 w2") + said("w5"), "lang": "sw"},
        {"instruction": "x1 x2", "output": "w5", "instruction_en": "w1 w2", "lang": "sw"},
        {"prompt": "x1 x2", "response": "w5", "reference": "w1 w2"},
    ],
    ids=["plain", "completion", "assistant-in-the-reference", "messages", "alpaca", "no-language"],
)
def test_layouts(row, tmp_path):
    trainer = made(tmp_path, [row] * 2)
    (whole, learned, reference), *_ = texts(trainer)
    assert any("2 rows have a reference and no lang" in note for note in trainer.notes) == ("lang" not in row)
    assert "x1 x2" in whole and "w5" in learned and "x1" not in learned
    assert "w1 w2" in reference and "w5" not in reference


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "prompt_en": "w1 w2 ? w5"}, r"row 1: prompt_en: it ends with the response"),
        ({**ROW, "prompt_en": None}, r"row 1: prompt_en: no parallel of the prompt in the reference language"),
        ({**ROW, "prompt": " "}, r"row 1: prompt: the prompt is empty"),
    ],
)
def test_bad_rows_are_told_or_left_out(row, says, tmp_path):
    rows = [ROW, row, HOME]
    with pytest.raises(UserError, match=says):
        made(tmp_path, rows)
    kept = made(tmp_path, rows, bad_rows="skip")
    assert len(kept.train_dataset) == 2 and len(kept.skipped) == 1


def test_a_misspelt_reference_is_told(tmp_path):
    rows = [{"prompt": "x1 x2", "response": "w5", "prmpt_en": "w1", "lang": "sw"}] * 2
    with pytest.raises(UserError, match=r"no such column among .*Did you mean 'prmpt_en'"):
        made(tmp_path, rows)
    with pytest.raises(UserError, match=r"train_dataset: prompt_en: no parallel"):
        made(tmp_path, [{"prompt": "x1 x2", "response": "w5"}] * 2)
    assert len(made(tmp_path, rows, {"connection": "none"}).train_dataset) == 2


def test_an_evaluation_set_may_be_called_train(tmp_path):
    """And its rows may lack a reference."""
    there = Dataset.from_list([{**HOME, "origin": "other:1"}, {**ROW, "prompt_en": None, "origin": "other:2"}])
    rows = [{**ROW, "origin": "own:1"}, {**HOME, "origin": "own:2"}]
    trainer = made(tmp_path, rows, eval_dataset={"train": there})
    assert trainer._origins == {0: "own:1", 1: "own:2"}
    assert [bool(row["reference_input_ids"]) for row in trainer.train_dataset] == [True, True]
    assert [bool(row["reference_input_ids"]) for row in trainer.eval_dataset["train"]] == [False, False]


def test_rows_without_a_prompt_are_told(tmp_path):
    with pytest.raises(UserError, match="train_dataset: prompt: no such column among text, lang"):
        made(tmp_path, [{"text": "x1 x2 w5", "lang": "sw"}] * 2)


# -- parallel text ----------------------------------------------------------------------------------------------------


def aligned(path, pairs, rows=None, **options) -> CCTrainer:
    return CCTrainer(
        model(),
        config(path, **options),
        ConnectionConfig(layers=[0, 1]),
        train_dataset=Dataset.from_list([HOME] if rows is None else rows),
        parallel_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer(chat=True),
    )


@pytest.mark.parametrize("lang", [{}, {"lang": None}])
@pytest.mark.parametrize("side", [str, user])
def test_the_language_of_parallel_text_is_identified_as_in_files(side, lang, tmp_path):
    given = [{"text": side(text), "reference": side(english), **lang} for text, english in [*PAIRS, PAIRS[0]]]
    made = aligned(tmp_path, given)
    assert sorted(made.parallel["lang"]) == ["en"] * 6 + ["sw"] * 6
    assert any("taken to be Swahili (sw), by its content; if not, add a column lang" in note for note in made.notes)
    assert "parallel_dataset: 1 repeated pairs were left out." in made.notes


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("x1 x2", "w1 w2", None)] * 2, "parallel_dataset: the language of its text cannot be identified; add a col"),
        ([(english, text, None) for text, english in PAIRS], "its text is in English, the reference language"),
        ([(english, text, "sw") for text, english in PAIRS], "parallel_dataset: the sides are swapped"),
        ([(text, text, "sw") for text in SWAHILI], "parallel_dataset: in 6 of 6 pairs both sides are the same"),
        ([(*pair, "en") for pair in PAIRS], "parallel_dataset: no parallel text: all rows are labelled en"),
        ([(*PAIRS[0], "sw"), ("", "x", "sw")], "parallel_dataset: row 1: text: the prompt is empty"),
        ([(*PAIRS[0], "sw"), ("x", "", "sw")], "parallel_dataset: row 1: text_en: no parallel of the prompt"),
    ],
)
def test_bad_parallel_text_is_one_line_as_in_files(pairs, says, tmp_path):
    given = [{"text": text, "text_en": english} | ({"lang": lang} if lang else {}) for text, english, lang in pairs]
    with pytest.raises(UserError, match=says) as raised:
        aligned(tmp_path, given)
    assert "\n" not in str(raised.value)


def test_answered_rows_without_a_language_are_in_the_reference_language(tmp_path):
    """They are not measured as a language of their own."""
    pairs = [{"text": text, "text_en": english, "lang": "sw"} for text, english in PAIRS]
    made = aligned(tmp_path, pairs, [{"prompt": "w1 w2", "completion": "w5"}], max_steps=1)
    assert made.train_dataset["lang"][:] == ["en"]
    made.train()
    assert [*made.by_language.as_dict()] == ["sw"]


@pytest.mark.parametrize("numbers", [["a", "b"], [None, None], [7, None], [-1, -2], [7, 8]], ids=str)
def test_a_column_row_that_numbers_no_rows_is_not_read(numbers, tmp_path):
    pairs = [{"text": "x1 x2", "reference": "w1 w2", "lang": "sw"}]
    found = aligned(tmp_path, pairs, [{**ROW, "row": number} for number in numbers], max_steps=1)
    first = 7 if numbers == [7, 8] else 0
    assert sorted(found.train_dataset["row"]) == [first, first + 1]
    assert min(found.parallel["row"]) == first + 2
    found.train()
