"""Parallel text as rows: which pairs are held out, how languages are mixed, and overlap with evaluation rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from cctuning.data.text import normalise

HELD, HELD_SHARE, LEAST = 32, 0.05, 100  # pairs of a language held out: at most, of its pairs, of so many at least


class Mixture:
    """An endless order of parallel rows in which each language has its share.

    A language with n rows has a share proportional to n^(1 / temperature) (XLM-R, arXiv 1911.02116, section 3): 1 is
    by size, more raises small languages. Within a language every row comes once before any is repeated.
    """

    def __init__(self, languages: Sequence[str], temperature: float, seed: int) -> None:
        """`languages` has the language of each row."""
        self.seed = seed
        self.languages = sorted(set(languages))
        named = np.asarray(languages)
        self._rows = [np.flatnonzero(named == code) for code in self.languages]
        sizes = np.array([len(rows) for rows in self._rows], dtype=float)
        shares = sizes ** (1.0 / temperature)
        self._quota = np.maximum(1, np.round(shares / shares.sum() * len(named))).astype(int)

    def __len__(self) -> int:
        """Rows of a round."""
        return int(self._quota.sum())

    def drawn(self, count: int) -> dict[str, int]:
        """Language -> about how many of `count` rows are in it."""
        shares = self._quota / len(self)
        return {code: round(count * float(share)) for code, share in zip(self.languages, shares, strict=True)}

    @lru_cache(maxsize=4)  # noqa: B019 - one mixture a run
    def round(self, number: int) -> Any:
        """Row numbers (M,) of the `number`-th round, of each language its share."""
        chosen = []
        for language, (rows, quota) in enumerate(zip(self._rows, self._quota, strict=True)):
            places = np.arange(number * quota, (number + 1) * quota)
            for again in np.unique(places // len(rows)):
                order = np.random.default_rng([self.seed, language, int(again)]).permutation(len(rows))
                chosen.append(rows[order[places[places // len(rows) == again] % len(rows)]])
        return np.random.default_rng([self.seed, 1 << 31, number]).permutation(np.concatenate(chosen))

    def rows(self, start: int, count: int) -> list[int]:
        """`count` row numbers from place `start` of the order."""
        return [int(self.round(place // len(self))[place % len(self)]) for place in range(start, start + count)]


def as_rows(pairs: Dataset, language: str) -> Dataset:
    """Pairs (columns `prompt`, `reference`, `lang`, `origin`) as rows without a response, and each distinct reference
    as a row that is its own reference: it keeps the reference language where it was. `language` is that language."""
    met: dict[str, int] = {}
    for number, value in enumerate(pairs["reference"]):
        if value is not None:  # a pair in the reference language is its own reference
            met.setdefault(str(value), number)
    own = pairs.select(sorted(met.values()))
    own = own.remove_columns(["prompt", "lang"]).add_column("prompt", own["reference"])
    own = own.add_column("lang", [language] * len(own)).cast(pairs.features)
    return concatenate_datasets([pairs, own])


def held_out(pairs: Dataset, language: str) -> list[int]:
    """Places of the pairs that are kept out of training, to measure alignment on text that was not trained on.

    Up to HELD pairs of each language, at most HELD_SHARE of its pairs, evenly spaced; none of a language with fewer
    than LEAST pairs, and none whose text is also in another pair. The choice depends on the pairs alone.
    """
    places = defaultdict(list)
    for place, lang in enumerate(pairs["lang"]):
        places[lang].append(place)
    chosen = []
    for lang, own in places.items():
        if lang != language and len(own) >= LEAST:
            count = min(HELD, int(HELD_SHARE * len(own)))
            chosen += [own[place] for place in np.linspace(0, len(own) - 1, count).astype(int)]
    texts = [_asked(text) for text in pairs.select(chosen)["prompt"]]
    times = Counter(dict.fromkeys(texts, 0))
    times.update(text for text in map(_asked, pairs["prompt"]) if text in times) if chosen else None
    return sorted(place for place, text in zip(chosen, texts, strict=True) if times[text] == 1)


def shared_with(evaluated: Dataset, pairs: Dataset) -> list[str]:
    """A note if parallel text contains prompts of evaluation rows, or their reference prompts."""
    asked = {_asked(text) for text in _both_sides(evaluated) if text}
    found = sum(
        any(text and _asked(text) in asked for text in sides)
        for sides in zip(pairs["prompt"], pairs["reference"], strict=True)
    )
    note = f"{found} pairs of the parallel text are prompts of the evaluation rows; remove them from one."
    return [note] if found else []


def _both_sides(rows: Dataset) -> Iterable[Any]:
    return (text for name in ("prompt", "reference") if name in rows.column_names for text in rows[name])


def _asked(prompt: Any) -> str:
    """A text, or the last turn of messages: what is before it may be a system prompt that all rows share."""
    return normalise(prompt if isinstance(prompt, str) else prompt[-1]["content"])
