"""Records of a data set as rows, with what pairing needs beside: the record itself, for its key and its id.

The files' formats and layouts are `cctuning.data`'s: what `train` can read, `pair` can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cctuning.data.layouts import Layout, check_columns, missing_reference, parse
from cctuning.data.readers import open_records
from cctuning.data.schema import BadRow, Row
from cctuning.errors import UserError

TEXT = {"prompt": "text", "reference": "text_{language}"}  # the columns of parallel text


@dataclass
class Reader:
    """A data set and how to read it; `rows` may be called once.

    Attributes:
        lang: of records that name none.
        columns: part to column name.
        where: column to value: other records are passed over.
        also: columns that the caller wants of the record.
        needs: a row without a parallel is bad, unless it is its own.
        fingerprints: filled while reading.
    """

    path: str
    name: str | None = None
    split: str = "train"
    lang: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    also: Sequence[str] = ()
    needs: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    exhausted: bool = False  # whether it was read to its end, and not to `limit`

    def rows(self, language: str) -> Iterator[tuple[str, Mapping[str, Any], Row | BadRow]]:
        """Origin, record, and the row it is, its language canonical, or what is wrong with it.

        Raises:
            UserError: the data set cannot be read, or has not the columns named.
        """
        count = 0
        named: set[str] = set()
        for records in open_records(self.path, self.name, self.split):
            self.fingerprints |= records.fingerprints
            layouts: dict[tuple[str, ...], Layout] = {}
            wanted = set(records.columns or ())
            if records.columns is not None:
                named.update(records.columns)
                used = self._layout(tuple(records.columns), language, layouts).used().values()
                wanted = {*used, *self.where, *self.also, "id"} & set(records.columns)
            for origin, record in records.iterate(wanted):
                if isinstance(record, BadRow):
                    count += 1
                    yield origin, {}, record
                    continue
                named.update(record)
                if any(record.get(column) != value for column, value in self.where.items()):
                    continue
                count += 1
                yield origin, record, self._row(origin, record, records.columns, language, layouts)
                if count == self.limit:
                    return
        if named:
            check_columns(list(named), self.columns, self.path)
            for column in self.where:
                if column not in named:
                    raise UserError(f"{self.path}: where: no column {column!r} among {', '.join(sorted(named))}.")
        if not count:
            raise UserError(f"{self.path}: no record to pair" + (" with these values (where)." if named else "."))
        self.exhausted = True

    def _layout(self, found: tuple[str, ...], language: str, layouts: dict[tuple[str, ...], Layout]) -> Layout:
        if found not in layouts:
            columns = dict(self.columns)
            if not columns and "text" in found and not {"prompt", "messages", "instruction"} & set(found):
                columns = {part: name.format(language=language) for part, name in TEXT.items()}
                columns = {part: name for part, name in columns.items() if name in found}
            layouts[found] = Layout.recognise(found, columns, language)
        return layouts[found]

    def _row(
        self,
        origin: str,
        record: Mapping[str, Any],
        columns: Sequence[str] | None,
        language: str,
        layouts: dict[tuple[str, ...], Layout],
    ) -> Row | BadRow:
        found = tuple(columns or record)
        try:
            layout = self._layout(found, language, layouts)
            row = parse(record, layout, origin, found=found, lang=self.lang, language=language)
        except BadRow as bad:
            return bad
        if row.lang == language:
            row.reference = row.reference_response = None
        elif self.needs and row.reference is None:
            return missing_reference(layout, found, language)
        return row
