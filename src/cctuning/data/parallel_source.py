"""What a recipe says of one source of parallel text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cctuning.data.parallel_columns import PARTS
from cctuning.data.parallel_langs import known
from cctuning.errors import UserError, nearest


@dataclass
class ParallelSource:
    """One file, directory or hub data set of parallel text, and how to read it."""

    path: str = field(metadata={"help": "File, directory or hub name; of two plain files, the other language's side."})
    reference: str | None = field(
        default=None, metadata={"help": "Two plain files line by line: the reference language's side."}
    )
    name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    split: str = field(default="train", metadata={"help": "Split of a hub or saved data set."})
    lang: str | None = field(
        default=None,
        metadata={
            "help": "Language of the text where the file does not say; of a file with several, the one to take."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Read this many good pairs and no more."})
    weight: float = field(
        default=1.0, metadata={"help": "Share of its pairs that takes part: below 1 a sample, above 1 with repeats."}
    )
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": f"Part to column name (or number, without a header), parts: {', '.join(PARTS)}."},
    )
    where: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Take records with these values alone (column: value)."}
    )
    bad_rows: str = field(
        default="error",
        metadata={"help": "error: stop at a bad pair. skip: leave it out and list it.", "choices": ["error", "skip"]},
    )

    def __post_init__(self) -> None:
        where = f"parallel {self.path}"
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"parallel: path: expected a file, a directory or a hub name, got {self.path!r}.")
        for option in ("reference", "name", "split", "lang"):
            value = getattr(self, option)
            # YAML reads a bare `no`, the code of Norwegian, as false
            if not isinstance(value, str) and (option == "split" or value is not None):
                raise UserError(f"{where}: {option}: expected text, got {value!r}; put it in quotes.")
        if self.lang is not None:
            code = known(self.lang)
            if code is None:
                raise UserError(f"{where}: lang: {self.lang!r} is no language; expected a code, e.g. sw, zh-Hant.")
            self.lang = code
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)) or not 0 < self.weight < 1e6:
            raise UserError(f"{where}: weight: expected a number above 0, got {self.weight!r}.")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise UserError(f"{where}: limit: expected a whole number of at least 1, got {self.limit!r}.")
        if self.bad_rows not in ("error", "skip"):
            raise UserError(f"{where}: bad_rows: expected error or skip, got {self.bad_rows!r}.")
        if not isinstance(self.where, Mapping):
            raise UserError(f"{where}: where: expected column: value, got {self.where!r}.")
        if not isinstance(self.columns, Mapping):
            raise UserError(f"{where}: columns: expected part: column name, got {self.columns!r}.")
        for part, column in self.columns.items():
            if part not in PARTS:
                hint = nearest(str(part), PARTS)
                raise UserError(f"{where}: columns: unknown part {part!r}; known: {', '.join(PARTS)}.{hint}")
            if isinstance(column, bool) or not isinstance(column, (str, int)):
                raise UserError(f"{where}: columns: {part}: expected a column name, got {column!r}.")
        self.columns = {part: str(column) for part, column in self.columns.items()}

    @classmethod
    def from_dict(cls, options: ParallelSource | Mapping[str, Any] | str, where: str = "parallel") -> ParallelSource:
        """Build from a mapping as a recipe has it (or a bare path); an unknown key is a `UserError` with the nearest.

        Args:
            options: field names to values.
            where: what to call the mapping in the message.
        """
        if isinstance(options, ParallelSource):
            return options
        if isinstance(options, str):
            return cls(options)
        if not isinstance(options, Mapping):
            raise UserError(f"{where}: expected a path or a mapping with path:, got {options!r}.")
        names = [option.name for option in fields(cls)]
        for key in options:
            if key not in names:
                raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(names)}.{nearest(str(key), names)}")
        if "path" not in options:
            raise UserError(f"{where}: path: missing; name a file, a directory or a hub data set.")
        return cls(**options)
