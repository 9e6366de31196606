"""Rows, parallel text and questions never share a sentence that they must not."""

import pytest

from cctuning.errors import UserError
from experiments.real.named import Named, countries
from experiments.real.several import Several
from experiments.real.translated import Translated
from experiments.real.worlds import Sib200, Text, version_of


@pytest.fixture
def world(data):
    return Sib200(("en", "sw"), ("own", "tico"))


def test_splits_are_apart(world):
    asked = {item.prompt.strip() for split in ("dev", "test") for item in world.items(split, "sw")}
    given = {row["prompt"].strip() for row in world.rows(Text(answered=("en", "sw")))}
    told = {pair["text"] for pair in world.pairs(Text())}
    assert len(asked) == 9 and len(given) == 18 and len(told) == 9
    assert not asked & given and not asked & told


def test_items_are_parallel(world):
    assert [item.key for item in world.items("test", "en")] == [item.key for item in world.items("test", "sw")]
    assert [item.answer for item in world.items("test", "en")] == [item.answer for item in world.items("test", "sw")]


def test_labels_and_other_text(world):
    text = Text(labels=4, source="other")
    answered = {row["prompt"].strip() for row in world.rows(text)}
    assert len(answered) == 4
    others = {pair["reference"] for pair in world.pairs(text)}
    assert len(others) == 5 and not answered & others


def test_sentences_without_and_general(world):
    assert len(world.pairs(Text(sentences=3))) == 3
    assert world.pairs(Text(without=("sw",))) == []
    assert {pair["lang"] for pair in world.pairs(Text(source="tico"))} == {"sw"}


def test_order_chooses_other_rows(world):
    first, second = (world.rows(Text(labels=3, order=order)) for order in (0, 1))
    assert first != second and first == world.rows(Text(labels=3))


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CC_TUNING_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="not a folder"):
        version_of(Sib200(("en",)))
    monkeypatch.delenv("CC_TUNING_DATA")
    with pytest.raises(UserError, match="CC_TUNING_DATA is not set"):
        version_of(Sib200(("en",)))


def test_countries_are_labelled_once():
    world = Named(("en", "fr", "sw"), "countries", countries)
    items = [item for split in ("train", "dev", "test") for item in world.items(split, "fr")]
    keys = [item.key for item in items]
    assert len(keys) == len(set(keys)) > 200
    assert ("Kenya\n", "Africa") in {(item.prompt, item.candidates[item.answer]) for item in items}


def test_the_text_of_one_pack_is_the_same_for_every_task(world):
    countries_ = Named(("en", "sw"), "countries", countries)
    worlds = {"sib200": world, "countries": countries_}
    one, two = (Several(task, worlds, {"sib200": "own", "countries": "own"}) for task in worlds)
    assert one.pairs(Text(labels=3, source="names", order=2)) == two.pairs(Text())
    assert one.pairs(Text()) == world.pairs(Text()) + countries_.pairs(Text())
    assert one.texts() == two.texts() and one.rows(Text()) != two.rows(Text())
    assert two.rows(Text(labels=3)) == countries_.rows(Text(labels=3))
    assert one.items("test", "sw") == world.items("test", "sw")


def test_english_by_a_translator(data, tmp_path, monkeypatch):
    said = "return [f'The children went to the market yesterday with basket {t[-1]}' for t in texts]"
    (tmp_path / "market.py").write_text(f"def translate(texts, source, target):\n    {said}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    world = Translated(("en", "sw"), translator="market:translate")
    pairs = world.pairs(Text(source="machine"))
    assert all(pair["reference"].endswith(f"with basket {pair['text'][-1]}") for pair in pairs)
    assert [pair["text"] for pair in pairs] == [pair["text"] for pair in world.pairs(Text())]
