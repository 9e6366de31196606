"""What reading rows and parallel text reports: counts by source, skipped rows and notes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cctuning.data.schema import BadRow, Skipped
from cctuning.data.sources import MixedSource
from cctuning.errors import UserError


@dataclass
class BaseSourceReport:
    """What one source gave. `read` counts good rows before `weight`, `languages` those that take part."""

    path: str
    read: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass
class SourceReport(BaseSourceReport):
    """What one source of rows gave; counts are after `weight`."""

    rows: int = 0
    with_response: int = 0
    without_response: int = 0
    reference_rows: int = 0  # among `read`: those made from a reference and its own response
    columns: dict[str, str] = field(default_factory=dict)  # part to column, as recognised


@dataclass
class ParallelSourceReport(BaseSourceReport):
    """What one source of parallel text gave."""

    pairs: int = 0
    duplicates: int = 0


@dataclass
class BaseReport:
    """Totals over the sources, skipped rows, and notes for the user."""

    reference_language: str
    sources: list[Any] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    LISTED: ClassVar[float] = math.inf  # most skipped rows that are listed for a source

    @property
    def languages(self) -> dict[str, int]:
        """Rows per language, the most frequent first."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.languages)
        return dict(total.most_common())

    @property
    def fingerprints(self) -> dict[str, str]:
        """File (or hub data set) to its hash, over all sources."""
        return {name: value for source in self.sources for name, value in source.fingerprints.items()}

    def skip(self, source: MixedSource, account: BaseSourceReport, origin: str, bad: BadRow) -> None:
        """Count and list a bad row of `source`."""
        skipped = Skipped(origin, bad.field, bad.reason)
        if source.bad_rows == "error":
            raise UserError(f"{skipped} (Or set bad_rows: skip for this source to leave out such rows.)")
        account.skipped += 1
        if account.skipped <= self.LISTED:
            self.skipped.append(skipped)

    def all_bad(self, account: BaseSourceReport) -> str:
        """What is wrong with a source that gave no good row; empty if it skipped none."""
        if not account.skipped:
            return ""
        first = self.skipped[-int(min(account.skipped, self.LISTED))]
        return f"all {account.skipped} are bad, the first: {first}"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "languages": self.languages, "skipped": [skip._asdict() for skip in self.skipped]}


@dataclass
class LoadReport(BaseReport):
    """The report of `load_rows`. A row without a response trains the alignment alone."""

    rows: int = 0
    with_response: int = 0
    without_response: int = 0


@dataclass
class ParallelReport(BaseReport):
    """The report of `load_parallel`. `skipped` lists the first 1,000 of each source; all are counted."""

    pairs: int = 0

    LISTED = 1000


def drawn(source: MixedSource, count: int, seed: Sequence[int], rows: str) -> NDArray[np.int64]:
    """The places that `source.weight` takes of `count` rows: whole copies, then a sample without replacement."""
    copies, rest = divmod(round(source.weight * count), count)
    if not copies and not rest:
        raise UserError(f"{source.path}: weight: {source.weight} of {count} {rows} leaves none; raise it.")
    sample = np.sort(np.random.default_rng(list(seed)).choice(count, rest, replace=False))
    return np.concatenate([np.tile(np.arange(count), copies), sample])
