"""Scripts, and the language of a text."""

from __future__ import annotations

import pytest

from cctuning.data.checks import other_language
from cctuning.data.text import ngrams, normalise, tokens
from cctuning.identify import confidence, expected_scripts, has_model, scripts


@pytest.mark.parametrize(
    "code, text",
    [
        ("sw", "Ujerumani"),
        ("th", "ไทย"),
        ("zh", "汉字"),
        ("zh-Hant-TW", "漢字ㄅ"),
        ("ja", "漢字とカナ"),
        ("ko", "한글"),
        ("ur", "اردو"),
        ("my", "မြန်မာ"),
        ("bn", "বাংলা"),
        ("or", "ଓଡ଼ିଆ"),
        ("chr", "ᏣᎳᎩ"),
        ("iu", "ᐃᓄᒃᑎᑐᑦ"),
        ("nqo", "ߒߞߏ"),
        ("mni-Mtei", "ꯃꯤꯇꯩ"),
        ("zgh", "ⵜⴰⵎⴰⵣⵉⵖⵜ"),
    ],
)
def test_scripts_that_are_expected(code, text):
    assert set(scripts(text)) <= set(expected_scripts(code))


def test_scripts_of_languages_with_two_and_of_unknown_ones():
    assert set(expected_scripts("sr")) == {"CYRILLIC", "LATIN"} and expected_scripts("sr-Latn") == ("LATIN",)
    assert expected_scripts("qqq") == ()


def test_scripts_that_are_found():
    assert scripts("कैसे हैं, Tom? 12") == {"DEVANAGARI": 7, "LATIN": 3}
    assert scripts("ラーメンを食べる") == {"KATAKANA": 4, "HIRAGANA": 3, "CJK": 1}


@pytest.mark.parametrize(
    "text, code",
    [
        ("Je, dalili hizi zimekuwa zikiendelea kwa muda gani?", "sw"),
        ("Die Katze schläft auf dem alten Sofa.", "de"),
        ("منذ متى لا تزال هذه الأعراض مستمرة؟", "ar"),
        ("Sudah berapa lama gejala ini berlangsung?", "ms"),  # Indonesian and Malay count as one
    ],
)
def test_the_language_of_a_text(text, code):
    assert confidence(text, code, "en")[0] > 0.5
    assert confidence("How long have these symptoms been going on?", code, "en")[0] < 0.1


def test_a_language_without_a_model_is_told_from_english():
    assert not has_model("ha")
    assert confidence("kusan tsawon lokacin ne waɗannan alamun ke gudana?", "ha", "en")[0] > 0.5
    assert confidence("about how long have these symptoms been going on?", "ha", "en")[0] < 0.1


@pytest.mark.parametrize(
    "code, text",
    [
        ("hi-Latn", "Mujhe aaj bazaar jaana hai aur kuchh sabzi khareedni hai."),
        ("kk-Latn", "Men búgin dúkenge baryp, nan men sút satyp alamyn."),
        ("pa-Arab", "میں اج بازار جا کے سبزی لینی اے تے فیر گھر آنا اے۔"),
    ],
)
def test_a_language_in_another_script_than_its_model_s_has_none(code, text):
    assert not has_model(code) and confidence(text, code, "en")[0] > 0.5
    assert other_language([text] * 100, code, "en") is None
    assert confidence("I have to go to the market and buy some vegetables.", code, "en")[0] < 0.5


def test_serbian_in_latin_letters_is_read_by_the_models_of_its_neighbours():
    assert has_model("sr-Latn") and confidence("Moram da idem na pijacu i kupim povrće.", "sr-Latn", "en")[0] > 0.5


def test_tokens_are_words_or_characters():
    assert tokens("Habari, yako?  «Nzuri».") == ["habari", "yako", "nzuri"]
    assert tokens("我有2个") == ["我", "有", "2", "个"]
    assert tokens("कितने हैं।") == ["कितने", "हैं"]  # vowel signs belong to their word
    assert normalise("Ａ  b\n१२") == "a b 12"


def test_ngrams_are_of_order_and_of_content():
    one, other = ngrams(["a", "b", "c", "d"], 3), ngrams(["x", "a", "b", "c"], 3)
    assert len(one) == 2 and one[0] == other[1] and one[1] not in other
    assert ngrams(["b", "a"], 2)[0] != ngrams(["a", "b"], 2)[0] and not len(ngrams(["a"], 2))
