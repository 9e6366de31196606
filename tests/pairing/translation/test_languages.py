"""BCP 47 tags to models' codes, against the lists of the libraries themselves."""

from __future__ import annotations

import pytest
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

from cctuning.errors import UserError
from cctuning.pairing.translation.chat import named
from cctuning.pairing.translation.seq2seq import resolve

M2M100 = [
    "af", "am", "ar", "ast", "az", "ba", "be", "bg", "bn", "br", "bs", "ca", "ceb", "cs", "cy", "da", "de", "el",
    "en", "es", "et", "fa", "ff", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha", "he", "hi", "hr", "ht", "hu", "hy",
    "id", "ig", "ilo", "is", "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "lb", "lg", "ln", "lo", "lt", "lv",
    "mg", "mk", "ml", "mn", "mr", "ms", "my", "ne", "nl", "no", "ns", "oc", "or", "pa", "pl", "ps", "pt", "ro", "ru",
    "sd", "si", "sk", "sl", "so", "sq", "sr", "ss", "su", "sv", "sw", "ta", "th", "tl", "tn", "tr", "uk", "ur", "uz",
    "vi", "wo", "xh", "yi", "yo", "zh", "zu",
]  # fmt: skip
# the languages of the method's six benchmarks and of its training data, and a few people often ask for
ASKED = {
    "ar": "arb_Arab", "bg": "bul_Cyrl", "bn": "ben_Beng", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn",
    "es": "spa_Latn", "et": "est_Latn", "eu": "eus_Latn", "fa": "pes_Arab", "fr": "fra_Latn", "ha": "hau_Latn",
    "he": "heb_Hebr", "hi": "hin_Deva", "ht": "hat_Latn", "id": "ind_Latn", "it": "ita_Latn", "ja": "jpn_Jpan",
    "km": "khm_Khmr", "ko": "kor_Hang", "ms": "zsm_Latn", "my": "mya_Mymr", "ne": "npi_Deva", "no": "nob_Latn",
    "pt": "por_Latn", "pt-BR": "por_Latn", "qu": "quy_Latn", "ro": "ron_Latn", "ru": "rus_Cyrl", "sv": "swe_Latn",
    "sw": "swh_Latn", "swa": "swh_Latn", "ta": "tam_Taml", "te": "tel_Telu", "th": "tha_Thai", "tl": "tgl_Latn",
    "tr": "tur_Latn", "ur": "urd_Arab", "vi": "vie_Latn", "yo": "yor_Latn", "zh": "zho_Hans", "zh-CN": "zho_Hans",
    "zh-TW": "zho_Hant", "zh-Hant": "zho_Hant", "zu": "zul_Latn", "es-LA": "spa_Latn", "ks-Deva": "kas_Deva",
    "sr": "srp_Cyrl",
}  # fmt: skip


@pytest.mark.parametrize("tag", ASKED)
def test_nllb(tag):
    assert resolve(tag, NLLB, "NLLB") == ASKED[tag]


def test_every_code_of_nllb_is_reached_by_itself_and_in_both_spellings():
    assert len(NLLB) == 202
    for code in NLLB:
        assert resolve(code, NLLB, "NLLB") == code
        assert resolve(code.replace("_", "-"), NLLB, "NLLB") == code
    several = {"ace", "bjn", "kas", "knc", "min", "taq", "zho"}  # more than one script
    for code in NLLB:
        if code[:3] not in several:
            assert resolve(code[:3], NLLB, "NLLB") == code


def test_m2m100_madlad_and_opus():
    for code in M2M100:
        assert resolve(code, M2M100, "M2M100") == code
    asked = {"swh": "sw", "fil": "tl", "nb": "no", "iw": "he", "nso": "ns", "arb": "ar", "zh-CN": "zh", "pt-BR": "pt"}
    assert {tag: resolve(tag, M2M100, "M2M100") for tag in asked} == asked
    madlad = ["en", "sw", "zh", "iw", "fil", "no", "translate", "ace_Arab", "ace"]
    assert resolve("he", madlad, "MADLAD") == "iw" and resolve("tl", madlad, "MADLAD") == "fil"
    assert resolve("sw", ["swh", "eng", "cmn_Hans", "cmn_Hant"], "Opus") == "swh"
    assert resolve("zh-TW", ["swh", "eng", "cmn_Hans", "cmn_Hant"], "Opus") == "cmn_Hant"


@pytest.mark.parametrize(
    "tag, message",
    [
        ("Swahilli", r"unknown language 'Swahilli'.*Did you mean 'sw' \(Swahili\)"),
        ("sww", "no code for the language 'sww'.*Did you mean 'sw"),
        ("qqq", "no code for the language 'qqq'.*knows 202 languages"),
        ("xx", "unknown language 'xx'"),
        ("sr-Latn", "known only as srp_Cyrl; name one"),
        ("", "unknown language ''"),
    ],
)
def test_unknown_languages_are_one_line_with_the_nearest(tag, message):
    with pytest.raises(UserError, match=message):
        resolve(tag, NLLB, "NLLB")


def test_names_for_prompts():
    names = {
        "sw": "Swahili",
        "swh": "Swahili",
        "zh-TW": "Traditional Chinese",
        "pt-BR": "Brazilian Portuguese",
        "prs": "Dari",
    }
    assert {tag: named(tag) for tag in names} == names
    nameless = {"acm", "acq", "ajp", "apc", "azb", "cjk", "hne", "kbp", "taq"}  # CLDR has no English name for these
    assert all(named(tag) for tag in {code.split("_")[0] for code in NLLB} - nameless)
    with pytest.raises(UserError, match=r"'Swahilli'.*Did you mean 'sw'"):
        named("Swahilli")
