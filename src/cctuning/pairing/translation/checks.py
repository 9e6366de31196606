"""Whether what an engine said can be a translation at all.

Not whether it is a good one: language, script and length ratio of a finished pair are checked where pairs are made.
Here are the faults of engines: nothing, the source again, one phrase over and over, an essay in place of a sentence.
The limits are wide, so that a translation is hardly ever caught.
"""

from __future__ import annotations

import unicodedata

COPIED = 25  # from this length on, a copy is no longer a name or a title
EXPLOSION = 6  # times as long as the source, beyond 200 characters
REPEATS, LONGEST, LOOP = 6, 60, 30  # a phrase of up to 60 characters, six times in a row, 30 characters in all
_ENDS = " \t\n.,;:!?。！？"


def problem_of(source_text: str, translation: str, same_language: bool) -> str | None:
    """What is wrong with a translation of a segment, or None.

    Args:
        source_text: the segment.
        translation: what the engine made of it.
        same_language: source and target are one language, so that a copy is right.
    """
    if not translation.strip():
        return "empty translation"
    copied = source_text.strip(_ENDS).casefold() == translation.strip(_ENDS).casefold()
    if copied and not same_language and length(source_text) >= COPIED:
        return "the translation is the source unchanged"
    # most are settled without counting
    if len(translation) > 200 + EXPLOSION * len(source_text) and len(translation) > 200 + EXPLOSION * length(
        source_text
    ):
        return f"the translation has {len(translation)} characters for {len(source_text)} of the source"
    phrase = _repeated(translation)
    if phrase and not _repeated(source_text):
        return f"the translation repeats {phrase.strip()!r} over and over"
    return None


def length(text: str) -> int:
    """The number of characters, an ideograph counting three: it says about as much as three letters."""
    return sum(3 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _repeated(text: str) -> str | None:
    """A phrase with a letter in it that stands `REPEATS` times in a row, if there is one.

    A phrase repeated once more than that contains a place divisible by four from which it is found; looking at those
    places alone is a hundred times as fast as a regular expression.
    """
    for start in range(0, len(text) - LOOP + 1, 4):
        again = text.find(text[start : start + 4], start + 1, start + LONGEST + 4)
        while again != -1:
            phrase = text[start:again]
            if text.startswith(phrase * max(REPEATS, -(-LOOP // len(phrase))), start) and any(
                map(str.isalpha, phrase)
            ):
                return phrase
            again = text.find(text[start : start + 4], again + 1, start + LONGEST + 4)
    return None
