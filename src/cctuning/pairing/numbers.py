"""Find numbers that differ between the two sides of a row.

Languages write the same number in many ways: digits of another script, a comma or a point before decimals, groups of
three or of two and three, words for digits, 万 or lakh for zeros, another calendar, 17:00 for 5 pm. So a difference is
reported only where *each* side has a number that the other lacks under every reading; a number missing on one side may
be written in words there. A number that was dropped, or changed by a factor of a hundred, is not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

from cctuning.data.text import ascii_digits

NUMBER = re.compile(r"\d+(?:[.,٫٬'’]\d+)*")
SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d|[.,]\d)")  # 1 000 000, as French and Russian write it
GROUPED = re.compile(r"\d{1,3}(?:\D\d{2,3})*\D\d{3}")  # 1,234,567 and 12,34,567
SEPARATOR = re.compile(r"\D")
NOON = re.compile(r"\d\s*(?:[ap]\.?\s?m\b|o['’]clock)", re.IGNORECASE)
SAA = re.compile(r"\bsaa\b", re.IGNORECASE)  # Swahili counts the hours from six
MYRIAD = re.compile(r"[万萬億亿兆만억조]")
DISCOUNT = re.compile(r"(?<!\d)(\d)\.?(\d?)\s*折")  # 8折 (pay eight tenths) is 20 % off; 75折 is 25 % off
SCALES = dict(zip("百백千천万萬만億亿억兆조", (2, 2, 3, 3, 4, 4, 4, 8, 8, 8, 12, 12), strict=True))  # zeros
SCALED = r"\d+(?:[百千백천]?[万萬億亿兆만억조]|[百千백천])"
NO_MORE = r"(?!\d|[.,]\d)"
COMPOUND = re.compile(  # 1億2000万, 3万5千, 3万5000
    rf"(?<!\d)(?<!\d[.,]){SCALED}(?:(?:\s?{SCALED})+(?:\d{{4}})?|\d{{4}}){NO_MORE}"
)
# Words for 0.1 and 10 million, where English says million: ten times, or a tenth of, the digits there
LAKH = re.compile(
    r"(?:\s*(?:[-–—]|to\b|से|ते|থেকে|سے)\s*\d[\d.,]*)?\s*"  # 5-6 crore: the 5 too
    r"(?:(?:lakh|crore)s?\b|laki\b|लाख|करोड|कोटी|लक्ष|লাখ|লক্ষ|কোটি|ਲੱਖ|ਕਰੋੜ|લાખ|કરોડ|ଲକ୍ଷ|କୋଟି|லட்ச|கோடி|లక్ష|కోటి|కోట్ల|"
    r"ಲಕ್ಷ|ಕೋಟಿ|ലക്ഷ|കോടി|ලක්ෂ|කෝටි|لاکھ|کروڑ)",
    re.IGNORECASE,
)
FRACTION = re.compile(rf"(?<![\d/])(?<!\d[.,])(?:(\d+) )?(\d{{1,2}})[/\u2044]([1-9]\d?)(?!/){NO_MORE}")  # 2½ in NFKC
MODES = ("", "joined", "split", "fractions")
CALENDARS = {"th": (543,), "fa": (621, 622), "ne": (56, 57), "am": (7, 8)}  # differences of years between calendars

Reading = frozenset[Decimal]


def numbers(text: str, mode: str = "") -> list[Reading]:
    """The numbers of a text in order, each as the set of its readings: `1.234` is 1.234 or 1234.

    In mode `joined`, `1 000` is one number; `split` splits at commas and points; `fractions` reads `1/2` as 0.5.
    """
    text = DISCOUNT.sub(lambda match: str(100 - int(f"{match[1]}{match[2] or 0}")), ascii_digits(text))
    text = COMPOUND.sub(_summed, text)
    if mode == "joined":
        text = SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    if mode == "fractions":
        text = FRACTION.sub(lambda match: str(int(match[1] or 0) + Decimal(match[2]) / Decimal(match[3])), text)
    if mode == "split":
        return [frozenset([Decimal(digits)]) for digits in re.findall(r"\d+", text)]
    found: list[Reading] = []
    for match in NUMBER.finditer(text):
        tenths = LAKH.match(text, match.end()) is not None
        found += (reading.union(value / 10 for value in reading if tenths) for reading in _readings(match[0]))
    return found


def _summed(match: re.Match[str]) -> str:
    total, room = 0, 0
    for digits, scale in re.findall(r"(\d+)(\D*)", match[0].replace(" ", "")):
        factor = 10 ** sum(SCALES[one] for one in scale)
        if room and int(digits) * factor >= room:  # two numbers, or 5千2百万
            return match[0]
        total, room = total + int(digits) * factor, factor
    return str(total)


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
    """The numbers that only one side has, where both sides have such; None where the sides agree.

    `lang` is the row's language without script and region; some have a calendar of their own.
    """
    apart = CALENDARS.get(lang, ()) + ((12,) if NOON.search(reference) or NOON.search(text) else ())
    apart += (6,) if lang == "sw" and SAA.search(text) else ()
    factor = 10 if MYRIAD.search(text) or MYRIAD.search(reference) else 100
    told: tuple[list[str], list[str]] | None = None
    for mode in MODES:
        here, there = numbers(text, mode), numbers(reference, mode)
        left, right = _alone(here, there, apart, factor), _alone(there, here, apart, factor)
        if not left or not right:
            return None
        told = told or (left, right)
    return told


def _alone(these: list[Reading], those: list[Reading], apart: tuple[int, ...], factor: int) -> list[str]:
    """The numbers of `these` that equal none of `those`.

    Repetitions count only where both sides have equally many numbers; otherwise one may be written in words.
    """
    if len(these) == len(those):
        said = Counter(those)
        left = [reading for reading, times in (Counter(these) - said).items() for _ in range(times)]
        rest = [value for reading in (said - Counter(these)) for value in reading]
    else:
        left, rest = list(dict.fromkeys(these)), [value for reading in those for value in reading]
    rest.append(Decimal(0))  # the minutes of 6:00 may be left out

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
    """The digits without zeros at either end, which a word may replace (20,000 is 2万, 1.5 million is 150万)."""
    return value.normalize().as_tuple().digits
