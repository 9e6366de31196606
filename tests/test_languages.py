"""What codes and names mean, against the ways in which data sets name languages."""

from __future__ import annotations

import pytest
from babel import Locale
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as FLORES

from cctuning.errors import UserError
from cctuning.languages import base, canonical, is_code, language_name, matches, same, tag


@pytest.mark.parametrize(
    ("code", "means"),
    [
        ("sw", "sw"),
        ("DE", "de"),
        ("swa", "sw"),  # ISO 639-3, macrolanguage and language
        ("swh", "sw"),
        ("ara", "ar"),
        ("arb", "ar"),
        ("eng_Latn", "en"),  # FLORES
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("kas_Deva", "ks-Deva"),
        ("kor_Hang", "ko"),
        ("English", "en"),  # names, in any order, case and spelling
        (" swahili ", "sw"),
        ("Brazilian Portuguese", "pt-BR"),
        ("Chinese (Simplified)", "zh"),
        ("chinese_traditional", "zh-Hant"),
        ("scottish_gaelic", "gd"),
        ("Nepali (individual language)", "ne"),
        ("zh-CN", "zh"),  # likely subtags
        ("zh_TW", "zh-Hant"),
        ("zh-Hant-TW", "zh-Hant"),
        ("zh-HK", "zh-Hant-HK"),
        ("pa-PK", "pa-Arab"),
        ("zh-yue", "yue"),  # an extended language
        ("pt_br", "pt-BR"),
        ("en-UK", "en-GB"),
        ("es-LA", "es-419"),
        ("de_DE.UTF-8", "de-DE"),  # locales
        ("sr_RS@latin", "sr-Latn"),
        ("iw", "he"),  # old codes and aliases
        ("in", "id"),
        ("nb-NO", "no-NO"),
        ("nob_Latn", "no"),
        ("nn", "nn"),
        ("tl", "fil"),
        ("tgl_Latn", "fil"),
        ("sh", "sr-Latn"),
        ("und", "und"),
        ("qaa", "qaa"),  # for private use
        ("x-Klingon", "x-klingon"),
        ("Kiswahili", "sw"),  # names in the language itself
        ("français", "fr"),
        ("Francais", "fr"),
        ("中文", "zh"),
        ("繁體中文", "zh-Hant"),
        ("العربية", "ar"),
        ("हिन्दी", "hi"),
        ("O'zbek", "uz"),
        ("srpski", "sr-Latn"),
        ("español (México)", "es-MX"),  # with a region or script
        ("Spanish (Mexico)", "es-MX"),
        ("Portuguese (Brazil)", "pt-BR"),
        ("English (US)", "en-US"),
        ("中文（台灣）", "zh-Hant"),
        ("中文(香港)", "zh-Hant-HK"),
        ("Chinese (Traditional, Hong Kong)", "zh-Hant-HK"),
    ],
)
def test_one_code_for_each_language(code, means):
    assert is_code(code) and canonical(code) == means
    assert canonical(means) == means


@pytest.mark.parametrize(
    ("code", "near"),
    [
        ("ws", "'sw'"),
        ("Swahlli", r"'sw' \(Swahili\)"),
        ("Frensh", r"'fr' \(French\)"),
        ("xx", ""),
        ("", "x-NAME"),
        ("sw sw", "x-NAME"),
        ("en-Foob", "'en'"),  # no such script
        ("1", ""),
    ],
)
def test_an_unknown_one_names_the_nearest(code, near):
    assert not is_code(code)
    with pytest.raises(UserError, match=rf"^--lang: unknown language '{code}'; expected a code such as sw.*{near}"):
        canonical(code, "--lang")


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("isiNdebele", r"nd \(North Ndebele\), nr \(South Ndebele\)"),
        ("Ndebele", r"nd \(North Ndebele\), nr \(South Ndebele\)"),
        ("Sotho", r"nso \(Northern Sotho\), st \(Southern Sotho\)"),
    ],
)
def test_an_ambiguous_name_lists_its_languages(name, candidates):
    assert not is_code(name)
    with pytest.raises(UserError, match=rf"^--lang: the language '{name}' is ambiguous: {candidates}; give its code"):
        canonical(name, "--lang")


def test_own_names_of_cldrs_languages():
    """The display names of CLDR, of languages and of regional variants."""
    wrong = {}
    for identifier in ("sw", "zh", "ar", "te", "th", "de", "fr", "es_MX", "pt_BR", "am", "bn", "ja", "ko", "yo", "ru"):
        name = Locale.parse(identifier).get_display_name()
        wrong |= {} if canonical(name) == canonical(identifier) else {identifier: name}
    assert not wrong


def test_every_code_of_flores_is_known_and_its_own():
    assert len({canonical(code) for code in FLORES}) == len(FLORES) == 202


@pytest.mark.parametrize(
    ("wanted", "found", "takes"),
    [
        ("zh-Hans", "zh_CN", True),
        ("zh-Hans", "zh_TW", False),
        ("zh", "zh-Hant", False),
        ("zh-Hant", "zh-HK", True),
        ("no", "nb-NO", True),
        ("no", "nn", False),
        ("he", "iw", True),
        ("tl", "fil", True),
        ("pt", "pt-BR", True),
        ("pt-BR", "pt-PT", False),
        ("pt-BR", "por_Latn", True),
        ("sr", "sr-Latn", False),
    ],
)
def test_what_a_wanted_language_takes(wanted, found, takes):
    assert matches(wanted, found) == matches(found, wanted) == takes


def test_regions_are_of_one_language_and_scripts_are_not():
    assert same("fr", "FRA") and same("fr-CA", "fr_FR") and not same("zh-TW", "zh-CN") and not same("en", "enm")
    assert base("zh-Hant-TW") == "zh" and base("swh_Latn") == "sw" and tag("sw-KE") == ("sw", "Latn", "KE", ())


def test_names_for_people():
    names = {"sw": "Swahili", "zh-TW": "Traditional Chinese", "pt-BR": "Brazilian Portuguese", "arb": "Arabic"}
    names |= {"prs": "Dari", "sr-Latn": "Serbian (Latin)", "sw-KE": "Swahili (Kenya)", "qaa": "qaa", "ws": "ws"}
    assert {code: language_name(code) for code in names} == names
