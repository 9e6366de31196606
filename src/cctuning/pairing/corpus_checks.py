"""Checks that need all rows: usual lengths, truncation, duplicates; and the order in which rows are written.

A row takes 38 bytes in memory; its text is in a temporary file. The usual length ratio of a language is estimated from
the rows by median and median absolute deviation, which a tenth of bad rows hardly changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctuning.pairing.options import Checks
from cctuning.pairing.row_checks import Figures, Problem

SIZES = (20, 60, 200)  # characters of the parallel; short texts vary more, so each range has its own spread
LEARN = 100  # fewest rows from which a spread is estimated
FLOOR = 0.1  # least standard deviation of a log ratio; rows of one template would have 0
FEW = np.log(10)  # largest log ratio where there are too few rows to estimate from
CLOSED = 0.9  # share of rows with final punctuation where the other side has it, above which its lack is an error


@dataclass
class Usual:
    """What is usual for a language, for the card."""

    rows: int
    ratio: float  # median of prompt's over parallel's length in characters
    spread: float  # standard deviation of its logarithm, from the median absolute deviation
    closes: list[float]  # share of prompts that close where the parallel does, and the other way round


ROW = np.dtype("u8,u2,u2,u8,u8,f4,u4,u1,?")
ROW.names = ("offset", "lang", "source", "same", "group", "ratio", "size", "ends", "answered")


class Corpus:
    """Figures of the rows that passed the checks of single rows.

    Attributes:
        langs: the languages; `rows["lang"]` is the place in this list.
        usual: (filled by `judge`) by language.
    """

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self.langs: list[str] = []
        self.usual: dict[str, Usual] = {}
        self._rows, self._count = np.zeros(1024, ROW), 0

    def add(self, figures: Figures, lang: str, source: int, offset: int) -> None:
        """Add a row whose text begins at `offset` of the temporary file."""
        if lang not in self.langs:
            self.langs.append(lang)
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._count] = (offset, self.langs.index(lang), source, *figures)
        self._count += 1

    @property
    def rows(self) -> NDArray[Any]:
        """The figures, in order: offset of the text, number of language and source, and `Figures`."""
        return self._rows[: self._count]

    def judge(self, problems: dict[int, Problem]) -> dict[int, Problem]:
        """Row number to problem over all rows, those that another check found included.

        Duplicates come last, so that the first of two equal rows is one that stays.
        """
        deviation = self._deviations()
        problems = {**problems, **self._odd_lengths(deviation), **self._odd_endings(deviation)}
        if self.checks.check_duplicates:
            left, first = self._firsts("same", problems)
            for number in left[left != first].tolist():
                problems[number] = Problem("duplicate", "an earlier row is the same.")
        return problems

    def order(self, rejected: dict[int, Problem]) -> NDArray[np.int64]:
        """The rows that stay, those with the same parallel together, in order of the first of each."""
        left, first = self._firsts("group", rejected)
        return left[np.lexsort((left, first))]

    def _firsts(self, column: str, rejected: dict[int, Problem]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that are not rejected, and for each the first one with the same value in a column."""
        left = np.setdiff1d(np.arange(self._count), list(rejected))
        _, first, which = np.unique(self.rows[column][left], return_index=True, return_inverse=True)
        return left, left[first[which]]

    def counts(self, rows: NDArray[np.int64]) -> dict[tuple[int, str], int]:
        kinds, times = np.unique(self.rows[["source", "lang"]][rows], return_counts=True)
        return {(int(one["source"]), self.langs[one["lang"]]): int(n) for one, n in zip(kinds, times, strict=True)}

    def _deviations(self) -> NDArray[np.float64]:
        """How many standard deviations each row's log ratio is from the median of its language and size."""
        ratio, ends = self.rows["ratio"].astype(np.float64), self.rows["ends"]
        ranges = np.searchsorted(SIZES, self.rows["size"])
        out = np.zeros(len(ratio))
        for number, lang in enumerate(self.langs):
            own = np.flatnonzero((self.rows["lang"] == number) & ~np.isnan(ratio))
            if not len(own):
                continue
            middle, spread = _robust(ratio[own])
            closes = [_share(ends[own] == 3, ends[own] >= 2), _share(ends[own] == 3, ends[own] % 2 == 1)]
            self.usual[lang] = Usual(len(own), round(float(np.exp(middle)), 3), round(spread, 3), closes)
            if len(own) < LEARN:
                absurd = own[abs(ratio[own]) > FEW]
                out[absurd] = np.copysign(np.inf, ratio[absurd])
                continue
            for which in range(len(SIZES) + 1):
                some = own[ranges[own] == which]
                centre, width = _robust(ratio[some]) if len(some) >= LEARN else (middle, spread)
                out[some] = (ratio[some] - centre) / width
        return out

    def _odd_lengths(self, deviation: NDArray[np.float64]) -> dict[int, Problem]:
        if not self.checks.check_length:
            return {}
        odd = np.flatnonzero(abs(deviation) > self.checks.check_length).tolist()
        return {number: Problem("length", self._says(number, deviation[number])) for number in odd}

    def _odd_endings(self, deviation: NDArray[np.float64]) -> dict[int, Problem]:
        if not self.checks.check_ending:
            return {}
        problems = {}
        for lang, usual in self.usual.items():
            own = self.rows["lang"] == self.langs.index(lang)
            for side, share, closed, sign in (("prompt", 0, 2, -1), ("parallel", 1, 1, 1)):
                if usual.rows < LEARN or usual.closes[share] < CLOSED:
                    continue
                odd = own & (self.rows["ends"] == closed) & (sign * deviation > self.checks.check_ending)
                for number in np.flatnonzero(odd).tolist():
                    says = self._says(number, deviation[number])
                    problems[number] = Problem("ending", f"only the {side} lacks final punctuation, and {says}")
        return problems

    def _says(self, number: int, deviation: float) -> str:
        row = self.rows[number]
        return (
            f"the prompt is {np.exp(row['ratio']):.2f} times as long as the parallel; "
            f"{self.usual[self.langs[row['lang']]].ratio:.2f} is usual ({deviation:+.1f} standard deviations)."
        )


def _robust(values: NDArray[np.float64]) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(abs(values - middle))), FLOOR)


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return round(float(part.sum() / max(whole.sum(), 1)), 3)
