"""Checks that need all rows: usual lengths, truncation, duplicates; and the order in which rows are written.

A row takes 63 bytes: its figures are in arrays, its text in a temporary file. The usual length ratio of a language is
estimated from the rows by median and median absolute deviation, which a tenth of bad rows hardly changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctuning.pairing.candidates import Problem
from cctuning.pairing.options import Checks
from cctuning.pairing.row_checks import Figures

SIZES = (20, 60, 200)  # characters of the parallel; short texts vary more, so each range has its own spread
LEARN = 100  # fewest rows from which a spread is estimated
FLOOR = 0.1  # least standard deviation of a log ratio; rows of one template would have 0
FEW = np.log(10)  # largest log ratio where there are too few rows to estimate from
CLOSED = 0.9  # share of rows with final punctuation where the other side has it, above which its lack is an error
KINDS = ("prompt", "parallel", "response")


@dataclass
class Usual:
    """What is usual for a language, for the card."""

    rows: int
    ratio: float  # median of prompt's over parallel's length in characters
    spread: float  # standard deviation of its logarithm, from the median absolute deviation
    closes: list[float]  # share of prompts that close where the parallel does, and the other way round


@dataclass
class CorpusFigures:
    """Figures of the rows that passed the checks of single rows, one array per figure."""

    checks: Checks
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    same: array[int] = field(default_factory=lambda: array("Q"))
    group: array[int] = field(default_factory=lambda: array("Q"))
    ratio: array[float] = field(default_factory=lambda: array("f"))
    size: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("B"))
    lang: array[int] = field(default_factory=lambda: array("H"))
    source: array[int] = field(default_factory=lambda: array("H"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    langs: list[str] = field(default_factory=list)
    usual: dict[str, Usual] = field(default_factory=dict)

    def add(self, figures: Figures, lang: str, source: int, offset: int) -> None:
        """Add a row whose text begins at `offset` of the temporary file."""
        if lang not in self.langs:
            self.langs.append(lang)
        self.offsets.append(offset)
        self.same.append(figures.same)
        self.group.append(figures.group)
        self.ratio.append(float("nan") if figures.ratio is None else figures.ratio)
        self.size.append(figures.size)
        self.ends.append(figures.ends)
        self.lang.append(self.langs.index(lang))
        self.source.append(source)
        self.lengths.extend(figures.lengths)

    def judge(self, problems: Mapping[int, Problem] = MappingProxyType({})) -> dict[int, Problem]:
        """Row number to problem, over all rows.

        Duplicates come last, so that the first of two equal rows is one that stays.

        Args:
            problems: of rows that another check rejects.
        """
        deviation = self._deviations()
        problems = {**problems, **self._lengths(deviation), **self._endings(deviation)}
        if self.checks.check_duplicates and len(self.same):
            left = np.setdiff1d(np.arange(len(self.same)), list(problems))
            same = np.asarray(self.same, np.uint64)[left]
            _, first, which = np.unique(same, return_index=True, return_inverse=True)
            for number in left[left != left[first[which]]].tolist():
                problems[number] = Problem("duplicate", "an earlier row is the same.")
        return problems

    def order(self, rejected: dict[int, Problem]) -> NDArray[np.int64]:
        """The rows that stay, those with the same parallel together, in order of the first of each."""
        left = np.setdiff1d(np.arange(len(self.group)), list(rejected))
        _, first, which = np.unique(np.asarray(self.group, np.uint64)[left], return_index=True, return_inverse=True)
        return left[np.lexsort((left, first[which]))]

    def groups(self, rows: NDArray[np.int64]) -> int:
        """The number of distinct parallels."""
        return len(np.unique(np.asarray(self.group, np.uint64)[rows]))

    def with_response(self, rows: NDArray[np.int64]) -> int:
        """The number of rows with a response."""
        return int((np.asarray(self.lengths).reshape(-1, 6)[rows, 4] > 0).sum())

    def counts(self, rows: NDArray[np.int64]) -> dict[tuple[int, str], int]:
        """Rows by source and language."""
        pairs = np.stack([np.asarray(self.source)[rows], np.asarray(self.lang)[rows]])
        kinds, times = np.unique(pairs, axis=1, return_counts=True)
        return {(int(source), self.langs[int(lang)]): int(n) for (source, lang), n in zip(kinds.T, times, strict=True)}

    def table(self, rows: NDArray[np.int64], unit: str) -> dict[str, Any]:
        """Lengths by language: median, 95th percentile and sum, in characters and in `unit`."""
        lengths, langs = np.asarray(self.lengths).reshape(-1, 6), np.asarray(self.lang)
        out: dict[str, Any] = {}
        for number, lang in enumerate(self.langs):
            own = lengths[rows[langs[rows] == number]]
            if not len(own):
                continue
            out[lang] = {}
            for place, part in enumerate(KINDS):
                filled = own[own[:, 2 * place] > 0]
                if len(filled):
                    out[lang][part] = {
                        name: {
                            "median": float(np.median(values)),
                            "p95": round(float(np.quantile(values, 0.95)), 1),
                            "sum": int(values.sum()),
                        }
                        for name, values in (
                            ("characters", filled[:, 2 * place]),
                            (unit, filled[:, 2 * place + 1]),
                        )
                    }
        return out

    def _deviations(self) -> NDArray[np.float64]:
        """How many standard deviations each row's log ratio is from the median of its language and size."""
        ratio = np.asarray(self.ratio, np.float64)
        ranges, langs = np.searchsorted(SIZES, np.asarray(self.size)), np.asarray(self.lang)
        ends = np.asarray(self.ends)
        out = np.zeros(len(ratio))
        for number, lang in enumerate(self.langs):
            own = np.flatnonzero((langs == number) & ~np.isnan(ratio))
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

    def _lengths(self, deviation: NDArray[np.float64]) -> dict[int, Problem]:
        if not self.checks.check_length:
            return {}
        odd = np.flatnonzero(abs(deviation) > self.checks.check_length).tolist()
        return {number: Problem("length", self._says(number, deviation[number])) for number in odd}

    def _endings(self, deviation: NDArray[np.float64]) -> dict[int, Problem]:
        if not self.checks.check_ending:
            return {}
        ends, langs = np.asarray(self.ends), np.asarray(self.lang)
        problems = {}
        for lang, usual in self.usual.items():
            if usual.rows < LEARN:
                continue
            own = langs == self.langs.index(lang)
            for side, share, closed, sign in (("prompt", 0, 2, -1), ("parallel", 1, 1, 1)):
                if usual.closes[share] < CLOSED:
                    continue
                odd = own & (ends == closed) & (sign * deviation > self.checks.check_ending)
                for number in np.flatnonzero(odd).tolist():
                    says = self._says(number, deviation[number])
                    problems[number] = Problem("ending", f"only the {side} lacks final punctuation, and {says}")
        return problems

    def _says(self, number: int, deviation: float) -> str:
        usual = self.usual[self.langs[self.lang[number]]].ratio
        return (
            f"the prompt is {np.exp(self.ratio[number]):.2f} times as long as the parallel; {usual:.2f} is usual "
            f"({deviation:+.1f} standard deviations)."
        )


def _robust(values: NDArray[np.float64]) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(abs(values - middle))), FLOOR)


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return round(float(part.sum() / max(whole.sum(), 1)), 3)
