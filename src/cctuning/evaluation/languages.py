"""How much text the world has in a language, by a public list, for the averages of a table.

Classes 0 to 5 of Joshi et al., "The State and Fate of Linguistic Diversity and Inclusion in the NLP World" (ACL 2020,
arXiv 2004.09095). As usual, 4 and 5 count as high-resource, 3 as mid and 0 to 2 as low.
"""

from __future__ import annotations

from cctuning.languages import base, is_code

JOSHI_CLASS = {
    "en": 5, "es": 5, "de": 5, "ja": 5, "fr": 5, "ar": 5, "zh": 5,
    "pt": 4, "it": 4, "ru": 4, "ko": 4, "vi": 4, "tr": 4, "hi": 4, "eu": 4,
    "id": 3, "th": 3, "bn": 3, "ta": 3, "bg": 3, "el": 3, "ur": 3, "et": 3, "ro": 3,
    "sw": 2, "yo": 2, "ht": 2,
    "te": 1, "qu": 1, "my": 1,
}  # fmt: skip
LEVELS = ("high", "mid", "low")


def level(language: str) -> str | None:
    """`high`, `mid` or `low`; None for a language that is not on our copy of the list."""
    found = JOSHI_CLASS.get(base(language)) if is_code(language) else None
    return None if found is None else "high" if found >= 4 else "mid" if found == 3 else "low"
