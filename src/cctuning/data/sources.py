"""Data sources as a recipe describes them, rows (`Source`) and parallel text (`ParallelSource`), and their reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import yaml
from numpy.typing import NDArray

from cctuning.data.layouts import PARTS
from cctuning.data.schema import BadRow, Skipped
from cctuning.errors import UserError, nearest
from cctuning.languages import canonical
from cctuning.settings import check_values, from_mapping

LISTED = 1000  # most bad rows of a source that are listed; all are counted


def path_or_mapping(text: str, where: str) -> Any:
    """A source in a flag: a path as it is, or the mapping in `{path: rows.tsv, lang: sw}` (YAML).

    Raises:
        UserError: text in braces that is no mapping.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a path, or a mapping as in '{{path: rows.tsv, lang: sw}}'; got {text!r}.")
    return found


@dataclass
class BaseSource:
    """A file, a directory or a hub data set, and how its columns are read. The help of a field documents it."""

    path: str = field(metadata={"help": "File, directory (of files, or saved by datasets), or hub name."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    split: str = field(default="train", metadata={"help": "Split of a hub or saved data set."})
    lang: str | None = field(default=None, metadata={"help": "Language of rows that have none of their own."})
    limit: int | None = field(default=None, metadata={"help": "Read this many good rows and no more.", "least": 1})
    columns: dict[str, str] = field(
        default_factory=dict, metadata={"help": f"Part to column name, where they differ; parts: {', '.join(PARTS)}."}
    )

    KIND: ClassVar[str] = "source"
    COLUMN_PARTS: ClassVar[tuple[str, ...]] = PARTS

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"{self.KIND}: path: expected a file, a directory or a hub name, got {self.path!r}.")
        check_values(type(self), vars(self), self.label)
        if self.lang is not None:
            self.lang = canonical(self.lang, f"{self.label}: lang")
        self._check_columns(self.columns)

    @property
    def label(self) -> str:
        """What errors call this source."""
        return f"{self.KIND} {self.path}"

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        for part, column in columns.items():
            if part not in self.COLUMN_PARTS:
                known = ", ".join(self.COLUMN_PARTS)
                hint = nearest(str(part), self.COLUMN_PARTS)
                raise UserError(f"{self.label}: columns: unknown part {part!r}; known: {known}.{hint}")
            if not isinstance(column, str):
                raise UserError(f"{self.label}: columns: {part}: expected a column name, got {column!r}.")

    @classmethod
    def from_dict(cls, options: Self | Mapping[str, Any] | str, where: str | None = None) -> Self:
        """Build from a path, or from a mapping as in a recipe (in a flag as text); errors call it `where`."""
        where = where or cls.KIND
        if isinstance(options, str):
            options = path_or_mapping(options, where)
        if isinstance(options, cls):
            return options
        if isinstance(options, str):
            return cls(options)
        if not isinstance(options, Mapping):
            raise UserError(f"{where}: expected a path or a mapping with path:, got {options!r}.")
        return from_mapping(cls, options, where)


@dataclass
class MixedSource(BaseSource):
    """A source whose rows are mixed with those of others."""

    weight: float = field(
        default=1.0, metadata={"help": "Share of its rows that takes part: below 1 a sample, above 1 with repeats."}
    )
    bad_rows: str = field(
        default="error",
        metadata={"help": "error: stop at a bad row. skip: leave it out and list it.", "choices": ("error", "skip")},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < 1e6:
            raise UserError(f"{self.label}: weight: expected a number above 0, got {self.weight!r}.")

    @classmethod
    def each(cls, sources: Sequence[Self | Mapping[str, Any] | str], where: str, bad_rows: str) -> list[Self]:
        """The sources of the option `where`; `bad_rows: skip` holds for all of them."""
        if not sources:
            raise UserError(f"{where}: none given; name at least one file, directory or hub data set.")
        named = [cls.from_dict(source, f"{where}[{number}]") for number, source in enumerate(sources)]
        return [replace(source, bad_rows="skip") for source in named] if bad_rows == "skip" else named

    def drawn(self, count: int, seed: Sequence[int]) -> NDArray[np.int64]:
        """The places that `weight` takes of `count` rows: whole copies, then a sample without replacement."""
        copies, rest = divmod(round(self.weight * count), count)
        if not copies and not rest:
            raise UserError(f"{self.path}: weight: {self.weight} of {count} rows leaves none; raise it.")
        sample = np.sort(np.random.default_rng(list(seed)).choice(count, rest, replace=False))
        return np.concatenate([np.tile(np.arange(count), copies), sample])


@dataclass
class Source(MixedSource):
    """A source of rows."""

    include_reference_rows: bool = field(
        default=False,
        metadata={"help": "Also emit, once, each reference with its own response as a row in the reference language."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in (("prompt", "messages"), ("reference", "reference_messages")):
            if all(part in self.columns for part in pair):
                raise UserError(f"{self.label}: columns: {' and '.join(pair)} exclude each other; map one.")


@dataclass
class ParallelSource(MixedSource):
    """A source of parallel text. `lang` names the language to take where a file has several; `limit` counts pairs."""

    reference: str | None = field(
        default=None, metadata={"help": "Two plain files line by line: the reference language's side."}
    )
    where: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Take records with these values alone (column: value)."}
    )

    KIND: ClassVar[str] = "parallel"
    COLUMN_PARTS: ClassVar[tuple[str, ...]] = ("text", "reference", "lang")

    def __post_init__(self) -> None:
        if isinstance(self.columns, Mapping):  # a file without a header has column numbers
            self.columns = {part: str(name) if type(name) is int else name for part, name in self.columns.items()}
        super().__post_init__()


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
    """Totals over the sources, the first bad rows of each, and notes for the user."""

    reference_language: str
    sources: list[Any] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
        """Count and list a bad row of `source`, which is an error unless the source skips them."""
        skipped = Skipped(origin, bad.field, bad.reason)
        if source.bad_rows == "error":
            raise UserError(f"{skipped} (Or set bad_rows: skip for this source to leave out such rows.)")
        account.skipped += 1
        if account.skipped <= LISTED:
            self.skipped.append(skipped)

    def first_bad(self, account: BaseSourceReport) -> str:
        """The first bad row of the source that is being read; empty if it has none."""
        return str(self.skipped[-min(account.skipped, LISTED)]) if account.skipped else ""

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
    """The report of `load_parallel`."""

    pairs: int = 0
