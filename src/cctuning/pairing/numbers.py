"""Numbers that differ between the two sides of a row.

Languages write the same number in many ways: digits of another script, a comma or a point before decimals, groups of
three or of two and three, a word in place of digits, 万 or lakh in place of zeros, another calendar, 17:00 for 5 pm. A
difference is therefore told only where *each* side has a number that the other lacks under every reading: one that is
missing on one side alone may be written in words there. A number changed on one side leaves such a pair; a number
dropped, or one changed by a factor of a hundred, does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

from cctuning.pairing.text import ascii_digits

NUMBER = re.compile(r"\d+(?:[.,٫٬'’]\d+)*")
SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d|[.,]\d)")  # 1 000 000, as French and Russian write it
GROUPED = re.compile(r"\d{1,3}(?:\D\d{2,3})*\D\d{3}")  # 1,234,567 and 12,34,567
SEPARATOR = re.compile(r"\D")
NOON = re.compile(r"\d\s*(?:[ap]\.?\s?m\b|o['’]clock)", re.IGNORECASE)
SAA = re.compile(r"\bsaa\b", re.IGNORECASE)  # Swahili counts the hours from six
MYRIAD = re.compile(r"[万萬億亿兆만억조]")
DISCOUNT = re.compile(r"(?<!\d)(\d)\.?(\d?)\s*折")  # 8折, eight parts of ten to pay, is 20 % off; 75折 is 25 %
BILLIONS = re.compile(r"(\d+)[億亿억]\s?(\d+)[万萬만]")  # 1億2000万
CALENDARS = {"th": (543,), "fa": (621, 622), "ne": (56, 57), "am": (7, 8)}  # years that other eras' numbers lie apart

Reading = frozenset[Decimal]


def numbers(text: str, mode: str = "") -> list[Reading]:
    """The numbers of a text in order, each as the set of what it may mean: `1.234` is 1.234 or 1234.

    Args:
        text: in any script.
        mode: `joined` reads `1 000` as one number, `split` takes commas and points for the ends of numbers.
    """
    text = DISCOUNT.sub(lambda match: str(100 - int(f"{match[1]}{match[2] or 0}")), ascii_digits(text))
    text = BILLIONS.sub(lambda match: str(int(match[1]) * 10**8 + int(match[2]) * 10**4), text)
    if mode == "joined":
        text = SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    if mode == "split":
        return [frozenset([Decimal(digits)]) for digits in re.findall(r"\d+", text)]
    return [reading for match in NUMBER.finditer(text) for reading in _readings(match[0])]


def _readings(written: str) -> Iterator[Reading]:
    separators, digits = SEPARATOR.findall(written), SEPARATOR.split(written)
    meanings: set[Decimal] = set()
    if not separators:
        meanings.add(Decimal(written))
    elif len(set(separators)) == 1:
        if GROUPED.fullmatch(written):
            meanings.add(Decimal("".join(digits)))
        if len(digits) == 2:
            meanings.add(Decimal(".".join(digits)))
    elif len(set(separators[:-1])) == 1 and separators[-1] in ".,٫":
        meanings.add(Decimal(f"{''.join(digits[:-1])}.{digits[-1]}"))
    if meanings:
        yield frozenset(meanings)
    else:  # a date, a version, a list: each part is a number of its own
        yield from (frozenset([Decimal(part)]) for part in digits)


def differ(text: str, reference: str, lang: str) -> tuple[list[str], list[str]] | None:
    """The numbers that each side has alone, where both have such; None where the sides agree.

    Args:
        text: of the row.
        reference: its parallel.
        lang: the row's language without script and region; it may have its own calendar.
    """
    apart = CALENDARS.get(lang, ()) + ((12,) if NOON.search(reference) or NOON.search(text) else ())
    apart += (6,) if lang == "sw" and SAA.search(text) else ()
    factor = 10 if MYRIAD.search(text) or MYRIAD.search(reference) else 100
    told: tuple[list[str], list[str]] | None = None
    for mode in ("", "joined", "split"):
        here, there = numbers(text, mode), numbers(reference, mode)
        left, right = _alone(here, there, apart, factor), _alone(there, here, apart, factor)
        if not left or not right:
            return None
        told = told or (left, right)
    return told


def _alone(these: list[Reading], those: list[Reading], apart: tuple[int, ...], factor: int) -> list[str]:
    """Those of `these` that none of `those` can be.

    How often a number is said matters only where both sides say as many: else it may be said once more in words.
    """
    if len(these) == len(those):
        said = Counter(those)
        left = [reading for reading, times in (Counter(these) - said).items() for _ in range(times)]
        rest = [value for reading in (said - Counter(these)) for value in reading]
    else:
        left, rest = list(dict.fromkeys(these)), [value for reading in those for value in reading]
    rest.append(Decimal(0))  # the minutes of 6:00 are not always said

    def same(one: Decimal, other: Decimal) -> bool:
        low, high = sorted((one, other))
        if low == high or (high - low in apart and (high <= 24 or low > 1200)):
            return True
        if 1900 <= high < 2100 and high % 100 == low:  # 2010-11, the 60s
            return True
        return low > 0 and high >= factor * low and _digits(low) == _digits(high)

    return [
        format(max(reading), "f") for reading in left if not any(same(one, other) for one in reading for other in rest)
    ]


def _digits(value: Decimal) -> tuple[int, ...]:
    """Without zeros at either end: a word may stand for those at the right (20,000 is 2万, 1.5 million is 150万)."""
    return value.normalize().as_tuple().digits
