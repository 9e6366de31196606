"""Numbers: written otherwise they agree, changed they do not."""

from __future__ import annotations

import pytest

from cctuning.pairing.numbers import differ


@pytest.mark.parametrize(
    "text, english, lang",
    [
        ("১২টি আপেল", "12 apples", "bn"),  # digits of other scripts
        ("٣٫٥ كيلومتر", "3.5 km", "ar"),
        ("３，４の点", "the point 3, 4", "ja"),
        ("1.234,56 Euro", "1,234.56 euros", "de"),  # separators
        ("1 000 000 d'habitants", "1,000,000 inhabitants", "fr"),
        ("12,34,567 रुपये", "1234567 rupees", "hi"),
        ("0,5 Stunden", ".5 hours", "de"),
        ("huit pommes et 3 poires", "8 apples and 3 pears", "fr"),  # in words on one side
        ("2万人", "20,000 people", "zh"),  # a word for zeros
        ("中国人口14亿", "1.4 billion people in China", "zh"),
        ("1億2000万ドル", "120 million dollars", "ja"),
        ("打8折", "20% off", "zh"),
        ("75折", "25% off", "zh"),
        ("ปี พ.ศ. 2563", "in 2020", "th"),  # another era
        ("um 18:30 Uhr", "at 6:30 pm", "de"),  # another clock
        ("avant 16 heures", "before 4 o'clock", "fr"),
        ("saa 9", "at 3", "sw"),
        ("2010–2011", "in 2010–11", "ru"),
        ("ohne Zahl", "no number", "de"),
    ],
)
def test_the_same_number_written_otherwise(text, english, lang):
    assert differ(text, english, lang) is None


@pytest.mark.parametrize(
    "text, english, left, right",
    [
        ("siku 31", "30 days", ["31"], ["30"]),
        ("১৩টি", "12 apples", ["13"], ["12"]),
        ("2013年7月", "July 2012", ["2013", "7"], ["2012"]),
        ("3,5 km", "3.6 km", ["3.5"], ["3.6"]),
        ("um 18:30 Uhr", "at 5:30 pm", ["18"], ["5"]),
        ("saa 8", "at 3 and 4", ["8"], ["3", "4"]),
    ],
)
def test_another_number_is_told_with_both(text, english, left, right):
    assert differ(text, english, "sw") == (left, right)


def test_what_the_rule_misses_by_design():
    assert differ("5 mayai", "500 eggs", "sw") is None  # a factor of a hundred
    assert differ("mayai", "5 eggs", "sw") is None  # dropped: it may be said in words
