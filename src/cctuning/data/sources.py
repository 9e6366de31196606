"""Data sources as a recipe describes them: rows (`Source`) and parallel text (`ParallelSource`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import yaml

from cctuning.data.layouts import PARTS
from cctuning.errors import UserError, nearest
from cctuning.languages import canonical
from cctuning.settings import check_values, from_mapping

PARALLEL_PARTS = ("text", "reference", "lang")


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
    COLUMN_PARTS: ClassVar[tuple[str, ...]] = PARALLEL_PARTS

    def __post_init__(self) -> None:
        if isinstance(self.columns, Mapping):  # a file without a header has column numbers
            self.columns = {part: str(name) if type(name) is int else name for part, name in self.columns.items()}
        super().__post_init__()
