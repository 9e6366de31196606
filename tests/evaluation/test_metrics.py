"""The metrics against figures worked out by hand, in the scripts where the usual implementations go wrong."""

from __future__ import annotations

import unicodedata

import pytest

from cctuning.evaluation.metrics import exact_match, normalise_answer, rouge_l, token_f1, tokens_for_rouge


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The Cat, a dog-house  & an “owl”!", ["cat", "doghouse", "owl"]),
        ("en", "Theatre anthem", ["theatre", "anthem"]),  # articles are whole words
        ("en", "$5 < 6", ["5", "6"]),  # $ and < are Unicode symbols, but in ASCII's punctuation
        ("en", "§5 €6", ["5", "€6"]),  # § is Po, € is Sc
        ("es", "¿La casa de los Unos?", ["casa", "de"]),
        ("de", "Die Größe des Hauses", ["größe", "hauses"]),
        ("vi", "Những cái nhà là của tôi", ["nhà", "tôi"]),
        ("vi", unicodedata.normalize("NFD", "là nhà"), ["nhà"]),
        ("ar", "العالم، ال عالم", ["عالم", "عالم"]),  # MLQA would also cut the ال inside عالم
        ("hi", "हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("sw", "A the Dodoma", ["a", "the", "dodoma"]),  # no rule: nothing is an article
        ("zh", "《北京》2008年8月iPhone", ["北", "京", "2008", "年", "8", "月", "iphone"]),
        ("zh-TW", "臺北 大學", ["臺", "北", "大", "學"]),
        ("ja", "東京タワー・カﾞ", ["東", "京", "タ", "ワ", "ー", "カﾞ"]),
        ("ja", "か\u3099々", ["が", "々"]),
        ("th", "น้ำตา ๒๕๖๐ปี", ["น้ำ", "ต", "า", "๒๕๖๐", "ปี"]),
        ("tha_Thai", "ปี ดี", ["ปี", "ดี"]),
        ("tha", "ตา", ["ต", "า"]),
        ("my", "မြန်မာ။", ["မြ", "န်", "မာ"]),
        ("my", "မန္တလေး", ["မ", "န္တ", "လေး"]),  # a stacked consonant stays with the one above
        ("km", "ខ្មែរ", ["ខ្មែ", "រ"]),
        ("lo", "ນ້ຳລາວ", ["ນ້ຳ", "ລ", "າ", "ວ"]),
        ("ko", "서울 東京", ["서울", "東京"]),
        ("en", "東京 tower", ["東京", "tower"]),
        ("tr", "IŞIK İstanbul", ["ışık", "istanbul"]),
        ("fa", "\u200fمی\u200cروم", ["میروم"]),
        ("km", "Wat\u200bPhnom", ["wat", "phnom"]),
        ("en", "❤\ufe0f", ["❤"]),
        ("en", "the", []),
        ("ar", "ال", []),
    ],
)
def test_normalised_tokens(language: str, text: str, tokens: list[str]) -> None:
    assert normalise_answer(text, language) == tokens


@pytest.mark.parametrize(
    ("language", "prediction", "targets", "score"),
    [
        ("en", "The Nile.", ["Amazon", "nile"], 1.0),
        ("en", "Nile river", ["Nile"], 0.0),
        ("en", "river Nile", ["Nile river"], 0.0),  # order counts
        ("zh", "北京 大学", ["“北京大学”"], 1.0),
        ("ar", "القاهرة", ["قاهرة"], 1.0),
        ("th", "ปี", ["ปิ"], 0.0),  # the vowel sign counts
        ("hi", "क\u093c", ["\u0958"], 1.0),  # one letter, two encodings
        ("zh", "２", ["2"], 0.0),  # NFC, not NFKC
        ("en", "", ["the"], 1.0),
        ("en", "", ["Nile"], 0.0),
        ("en", "Nile", [""], 0.0),
    ],
)
def test_exact_match(language: str, prediction: str, targets: list[str], score: float) -> None:
    assert exact_match(prediction, targets, language) == score


@pytest.mark.parametrize(
    ("language", "prediction", "targets", "score"),
    [
        # big red house / red house today: 2 common, P = 2/3, R = 2/3
        ("en", "the big red house", ["a red house today"], 2 / 3),
        # repeats cost precision: 1 common, P = 1/3, R = 1, F = 2·(1/3) / (4/3)
        ("en", "no no no", ["no"], 1 / 2),
        # a bag, not a set: 2 common, P = 1, R = 2/3, F = (4/3) / (5/3)
        ("en", "no no", ["no no yes"], 4 / 5),
        # river Nile against Amazon: 0; against Nile: P = 1/2, R = 1, F = 1 / (3/2)
        ("en", "river Nile", ["Amazon", "Nile", "Congo"], 2 / 3),
        ("en", "river Nile", ["Amazon"], 0.0),
        # ก รุ ง เ ท พ ฯ (7) against the first 6: P = 6/7, R = 1, F = 12/13
        ("th", "กรุงเทพฯ", ["กรุงเทพ"], 12 / 13),
        # 北 京 大 学 against 北 京: P = 2/4, R = 1, F = 1 / (3/2)
        ("zh", "北京大学", ["北京"], 2 / 3),
        # 東 京 タ ワ ー against 東 京: P = 2/5, R = 1, F = (4/5) / (7/5)
        ("ja", "東京タワー", ["東京"], 4 / 7),
        # جامعة قاهرة against قاهرة, both without ال: P = 1/2, R = 1
        ("ar", "الجامعة القاهرة", ["قاهرة"], 2 / 3),
        # नई दिल्ली शहर against नई दिल्ली: P = 2/3, R = 1, F = (4/3) / (5/3)
        ("hi", "नई दिल्ली शहर।", ["नई दिल्ली"], 4 / 5),
        # mji wa dodoma against dodoma: P = 1/3, R = 1, F = (2/3) / (4/3)
        ("sw", "Mji wa Dodoma", ["Dodoma"], 1 / 2),
        ("en", "the", ["", "Nile"], 1.0),
        ("en", "", ["Nile"], 0.0),
        ("en", "Nile", ["!"], 0.0),
    ],
)
def test_token_f1(language: str, prediction: str, targets: list[str], score: float) -> None:
    assert token_f1(prediction, targets, language) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The U.S. won't pay $1,000", ["the", "u", "s", "won", "t", "pay", "1", "000"]),
        ("hi", "हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("bn", "বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("th", "แมวดำ (๒ตัว)", ["แ", "ม", "ว", "ดำ", "๒", "ตั", "ว"]),
        ("en", "東京タ tower", ["東", "京", "タ", "tower"]),  # by script, whatever the language
        ("yo", "ọ̀rọ̀", ["ọ̀rọ̀"]),  # ọ̀ has no composed form: the mark stays
        ("fr", unicodedata.normalize("NFD", "Été"), ["été"]),
        ("en", "I ❤\ufe0f \u0301x", ["i", "x"]),  # no token from a selector, nor from a mark without a letter
        ("tr", "ILIK", ["ılık"]),
        ("en", "…", []),
    ],
)
def test_rouge_tokens(language: str, text: str, tokens: list[str]) -> None:
    assert tokens_for_rouge(text, language) == tokens


@pytest.mark.parametrize(
    ("language", "prediction", "target", "score"),
    [
        # Lin (2004), section 3.1, S1 to S3: "police the gunman" (3) and "the gunman" (2), of 4 words each
        ("en", "Police kill the gunman.", "police killed the gunman", 3 / 4),
        ("en", "the gunman kill police", "police killed the gunman", 2 / 4),
        # a x b y c against a b c: LCS 3 with gaps, P = 3/5, R = 1, F = (6/5) / (8/5)
        ("en", "q x r y s", "q r s", 3 / 4),
        ("en", "q r s", "q x r y s", 3 / 4),
        # แ ม ว ดำ against แ ม ว: LCS 3, F = 6/7
        ("th", "แมวดำ", "แมว", 6 / 7),
        # 我 爱 北 京 against 北 京 爱 我: LCS 北 京 = 2, F = 4/8
        ("zh", "我爱北京", "北京爱我", 1 / 2),
        # हिन्दी एक भाषा है against हिन्दी भाषा है: LCS 3, F = 6/7
        ("hi", "हिन्दी एक भाषा है।", "हिन्दी भाषा है", 6 / 7),
        # two words that differ in a vowel sign only
        ("hi", "की", "कि", 0.0),
        # الكتاب جديد against كتاب جديد: no article rule here, LCS 1, F = 2/4
        ("ar", "الكتاب جديد", "كتاب جديد", 1 / 2),
        # rais wa kenya against rais mpya wa kenya: LCS 3, F = 6/7
        ("sw", "Rais wa Kenya", "rais mpya wa Kenya", 6 / 7),
        # 猫 が 好 き against 犬 が 好 き: LCS 3, F = 6/8
        ("ja", "猫が好き。", "犬か\u3099好き", 3 / 4),
        ("en", "", "police", 0.0),
        ("en", "police", "", 0.0),
        ("en", "", "", 0.0),
    ],
)
def test_rouge_l(language: str, prediction: str, target: str, score: float) -> None:
    assert rouge_l(prediction, target, language) == pytest.approx(score, abs=1e-12)
