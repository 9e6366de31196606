"""Compare texts: normalisation, tokens, hashed n-grams, leaks of a response, and a set of hashes.

In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a token.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
import zlib

import numpy as np
from numpy.typing import NDArray

from cctuning.data.schema import Text

Hashes = NDArray[np.uint64]

# Kana, CJK, Thai, Lao, Myanmar, Khmer
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
STOPS = r",.!?:;()\[\]\"“”、。，．！？：；「」『』（）،؛؟।"
TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}{STOPS}]+")
# Fractions, powers and circled digits: NFKC makes `2½` 21⁄2 and `5²` 52.
AFTER_DIGIT = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u2189\u2460-\u2473])")
DIGITS = {place: str(unicodedata.digit(chr(place))) for place in range(sys.maxunicode) if chr(place).isdecimal()}
LONG = 12  # characters from which a response does not stand in the reference by chance
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that multiplication modulo 2**64 is invertible


def flat(text: Text) -> str:
    """A text, or the contents of messages joined by line breaks."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


class _Spaced(dict[int, str]):
    """For `str.translate`: everything but letters, marks and digits becomes a space; filled on demand."""

    def __missing__(self, place: int) -> str:
        self[place] = " " if unicodedata.category(chr(place))[0] in "PSZC" else chr(place)
        return self[place]


_SPACED = _Spaced()


def ascii_digits(text: str) -> str:
    """The text in NFKC, with the decimal digits of any script as 0-9, apart from fractions and powers."""
    if text.isascii():
        return text
    text = AFTER_DIGIT.sub(" ", text)
    return unicodedata.normalize("NFKC", text).translate(DIGITS)


def normalise(text: str) -> str:
    """The text without differences of case, spacing, width and digit forms."""
    return " ".join(ascii_digits(text).casefold().split())


def tokens(text: str) -> list[str]:
    """Words without punctuation; characters where words are not spaced."""
    return TOKEN.findall(ascii_digits(text).casefold().translate(_SPACED))


def ngrams(words: list[str], n: int) -> Hashes:
    """A 64-bit hash of every n consecutive tokens, in order; unlike `hash`, the same in every process."""
    if len(words) < n:
        return np.empty(0, np.uint64)
    each = np.array([zlib.crc32(word.encode(errors="replace")) for word in words], np.uint64)
    out = np.zeros(len(words) - n + 1, np.uint64)
    for place in range(n):
        out = (out + each[place : len(out) + place]) * np.uint64(MULTIPLIER)
        out ^= out >> np.uint64(29)
    return out


def found(part: Hashes, whole: Hashes) -> float:
    """The share of the n-grams `part` that are in `whole`; 0 where there are none."""
    return float(np.isin(part, whole).mean()) if len(part) and len(whole) else 0.0


def leak(prompt: Text, response: str, reference: Text) -> str | None:
    """How the reference contains the response, or None.

    On normalised texts: a response of `LONG` characters or more is in the reference and not in the prompt; or the
    reference ends with it as a whole word, and the prompt does not contain it (after a mark such as `:`, `#` or `?`:
    does not end with it). A short response inside the reference means nothing: the answer to a sum may be one of its
    terms.
    """
    answer, asked, given = (normalise(flat(text)) for text in (response, prompt, reference))
    advice = "The model would read the answer instead of learning it; give the parallel of the prompt only."
    if len(answer) >= LONG and answer in given and answer not in asked:
        return f"it contains the response ({answer[:40]!r}). {advice}"
    answer, asked, given = (re.sub(r"[\W_]+$", "", text) for text in (answer, asked, given))
    if answer and given.endswith(answer):
        before = given[: -len(answer)]
        word = not before[-1:].isalnum()
        marked = before.rstrip().endswith((":", "#", "=", ">", "?"))
        if word and (answer not in asked or (marked and not asked.endswith(answer))):
            return f"it ends with the response ({answer[:40]!r}). {advice}"
    return None


def hash64(text: str) -> int:
    """A 64-bit hash, the same in every process; two of a million texts share one in 1 of 37 million runs."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


class Seen:
    """A set of 64-bit hashes of texts at about 16 bytes each: a sorted array, and a small set of the latest."""

    def __init__(self) -> None:
        self._sorted, self._latest = np.empty(0, np.uint64), set[int]()

    def add(self, *words: str) -> bool:
        """Add the hash of some words; return whether it is new."""
        value = hash64("\x1f".join(words))
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._latest or (place < len(self._sorted) and int(self._sorted[place]) == value):
            return False
        self._latest.add(value)
        if len(self._latest) > max(50_000, len(self._sorted) // 8):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted, self._latest = np.sort(np.concatenate([self._sorted, latest])), set()
        return True
