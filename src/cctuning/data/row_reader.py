"""From records to checked rows, for `load_rows`, `cctuning pair` and data sets passed to the trainer from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cctuning.data.layouts import (
    AFTER,
    LANG_COLUMNS,
    Layout,
    arguments_of,
    check_columns,
    check_filled,
    missing_reference,
    reference_of,
    sides_of,
)
from cctuning.data.messages import context_columns, text_of, tools_of
from cctuning.data.readers import open_records
from cctuning.data.schema import BadRow, Row
from cctuning.data.sources import BaseSource
from cctuning.data.text import flat, leak, normalise
from cctuning.errors import UserError
from cctuning.languages import UNKNOWN, canonical, is_code, language_name, same, unknown

PROMPTS = {"prompt", "messages", "conversations", "instruction"}
NAMING = "'{path: FILE, lang: sw}' in place of FILE (cctuning pair: --lang sw)"


@dataclass
class RowReader:
    """Reads rows.

    Attributes:
        language: the reference language, canonical.
        columns: part to column name, where the user maps them.
        lang: language of records that name none.
        require_reference: a row in another language without a reference is bad.
        text_is_prompt: columns `text` and `text_<language>` are read as prompt and reference, as in parallel text.
        to_answer: conversations that do not end with an answer are prompts for one.
        found: (filled) every column of every record, in order.
        parts: (filled) part to column, as recognised.
        unread: (filled) what is not read, with how often: keys of messages, and turns after the last answer.
        unlabelled: (filled) rows without a language and a reference, taken to be in the reference language.
        half: (filled) rows with an `input` whose reference has none.
        unused_parallels: (filled) rows in the reference language with a parallel that says something else.
        fingerprints: (filled) file or data set to its hash.
        others: (filled) columns that are used, but not as a part of rows.
    """

    language: str
    columns: Mapping[str, str] = field(default_factory=dict)
    lang: str | None = None
    require_reference: bool = False
    text_is_prompt: bool = False
    to_answer: bool = False
    found: dict[str, None] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    half: int = 0
    unused_parallels: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    _layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)

    def read(
        self, source: BaseSource, where: Mapping[str, Any] | None = None, also: Sequence[str] = ()
    ) -> Iterator[tuple[str, Mapping[str, Any], Row | BadRow]]:
        """The origin of each record, the record (the columns in use), and its row or what is wrong with it.

        Records without the values `where` (column to value) are skipped; the columns `also` are read too.
        """
        where = where or {}
        self.others |= {*where, *also}
        for records in open_records(source.path, source.name, source.split):
            self.fingerprints |= records.fingerprints
            wanted: set[str] = set()
            if records.columns is not None:
                self.found |= dict.fromkeys(records.columns)
                check_columns(records.columns, self.columns, source.path)
                try:
                    used = self.layout(tuple(records.columns)).used().values()
                except BadRow as bad:
                    raise UserError(f"{source.path}: {bad}") from None
                wanted = {*used, *where, *also} & set(records.columns)
            for origin, record in records.iterate(wanted):
                if isinstance(record, BadRow):
                    yield origin, record.record, record
                    continue
                self.found |= dict.fromkeys(record)
                if all(record.get(column) == value for column, value in where.items()):
                    yield origin, record, self.parse(record, origin, records.columns or record)
        if self.unlabelled and {"lang", "reference", "reference_messages"} & self.parts.keys():
            raise UserError(
                f"{source.path}: {self.unlabelled} rows at its beginning have no lang, and others have one or a "
                f"reference prompt; fill the column, or name it: {NAMING}."
            )
        if self.found:
            check_columns(list(self.found), self.columns, source.path)
            for column in where:
                if column not in self.found:
                    columns = ", ".join(self.found)
                    raise UserError(f"{source.path}: where: no column {column!r} among {columns}.")

    def notes(self) -> list[str]:
        """What the user should know about how the rows were read."""
        notes, parts = [], self.parts
        used = {*parts.values(), *self.others}
        if unread := context_columns(list(self.found), used):
            notes.append(
                f"column not read, although its name suggests context for the prompt: {', '.join(unread)}. What "
                f"is read: {', '.join(f'{column} ({part})' for part, column in parts.items())}."
            )
        has_reference = parts.keys() & {"reference", "reference_messages"}
        if "reference" in self.found and "reference" not in used and not has_reference:
            notes.append(
                f"column reference is not read, as it may be anything. If it has the prompts in {self.language}, "
                f"rename it prompt_{self.language}, or set columns: {{reference: reference}}."
            )
        ignored = [name for name in LANG_COLUMNS if name in self.found and name not in used]
        if self.lang and ignored:
            notes.append(
                f"column {', '.join(ignored)} is not read, because the source has lang: {self.lang}. Leave lang out "
                "if the column has the languages of the rows."
            )
        if after := self.unread.pop(AFTER, 0):
            notes.append(
                f"{after} conversations go on after their last answer; those turns are left out, and the answers "
                "before them are learned."
            )
        if self.unread:
            keys = ", ".join(f"{key} ({count})" for key, count in self.unread.items())
            notes.append(f"keys of messages that are not read: {keys}.")
        if self.unlabelled:
            notes.append(
                f"no column lang: its rows are taken to be in {language_name(self.language)}; if they are not, name "
                f"their language: {NAMING}."
            )
        if self.half:
            notes.append(
                f"{self.half} rows have an {parts['input']}, and their reference is the {parts['reference']} alone; "
                f"give {parts['input']}_{self.language} as well."
            )
        if self.unused_parallels:
            notes.append(
                f"{self.unused_parallels} rows are labelled {self.language}, the reference language, and have a "
                f"parallel ({parts.get('reference') or parts.get('reference_messages')}) that says something else; "
                "it is not used. If they are in another language, correct their lang."
            )
        return notes

    def layout(self, found: tuple[str, ...]) -> Layout:
        """Which column plays which part; raises `BadRow` where two columns could play the same."""
        if found not in self._layouts:
            columns = dict(self.columns)
            mapped = {"prompt", "messages"} & columns.keys()
            if self.text_is_prompt and not mapped and "text" in found and not PROMPTS & set(found):
                named = {"prompt": "text", "reference": f"text_{self.language}"}
                columns = {part: name for part, name in named.items() if name in found} | columns
            lang_column = next((name for name in LANG_COLUMNS if name in found), None)
            if lang_column and self.lang in (None, UNKNOWN):
                columns = {"lang": lang_column} | columns
            layout = self._layouts[found] = Layout.recognise(found, columns, self.language)
            self.parts |= layout.used()
        return self._layouts[found]

    def parse(self, record: Mapping[str, Any], origin: str, found: Sequence[str] | Mapping[str, Any]) -> Row | BadRow:
        """The row that a record is, or what is wrong with it; `found` are all columns of its file."""
        try:
            return self._parse(record, origin, tuple(found))
        except BadRow as bad:
            return bad

    def _parse(self, record: Mapping[str, Any], origin: str, found: tuple[str, ...]) -> Row:
        layout = self.layout(found)
        prompt, response, prompt_field = sides_of(record, layout, found, self.unread, self.to_answer)
        check_filled(prompt, prompt_field)
        lang = self._language(record, layout)
        reference = reference_response = None
        if lang != self.language:
            reference, reference_response = reference_of(record, layout, self.language, prompt)
            own, theirs = (name and record.get(name) for name in (layout.input, layout.reference_input))
            self.half += bool(reference and layout.reference and own and not theirs)
            how = leak(prompt, response["content"], reference) if reference is not None and response else None
            if how:
                raise BadRow(layout.reference_messages or layout.reference or "reference", how)
            if self.require_reference and reference is None:
                raise missing_reference(layout, found, self.language)
        elif self.require_reference:
            unused, _ = reference_of(record, layout, self.language, prompt)
            self.unused_parallels += unused is not None and normalise(flat(unused)) != normalise(flat(prompt))
        if layout.id is not None:
            origin = f"{origin} (id {record.get(layout.id)})"
        row = Row(prompt, None, lang, reference, reference_response, origin)
        if response is not None:
            row.response, row.calls = response["content"], response.get("tool_calls")
            row.thinking = response.get("thinking")
        row.tools = tools_of(record.get(layout.tools), layout.tools) if layout.tools else None
        if layout.arguments and record.get(layout.arguments):
            row.arguments = arguments_of(record[layout.arguments], layout.arguments)
        return row

    def _language(self, record: Mapping[str, Any], layout: Layout) -> str:
        """The row's language, canonical; the reference language in any spelling is `self.language`."""
        field = layout.lang or "lang"
        named = record.get(layout.lang) if layout.lang else None
        lang = text_of(self.lang if named is None or named == "" else named, field).strip()
        if not lang:
            if self.text_is_prompt or {"lang", "reference", "reference_messages"} & self.parts.keys():
                raise BadRow(field, f"no language; fill the column, or name it: {NAMING}.")
            self.unlabelled += 1
            return self.language
        if not is_code(lang):
            if self.lang == UNKNOWN:  # a default of ours, not the user's; a programming language, perhaps
                return UNKNOWN
            raise BadRow(field, unknown(lang))
        return self.language if same(lang, self.language) else canonical(lang)


def read_rows(path: str, language: str) -> Iterator[tuple[str, Row | BadRow]]:
    """The rows of a file, directory or hub data set with their origins, of any layout or of parallel text.

    The language of rows that name none is `UNKNOWN`; `language` is the reference language.
    """
    empty = True
    reader = RowReader(language, lang=UNKNOWN, text_is_prompt=True)
    for origin, _, row in reader.read(BaseSource(path)):
        empty = False
        yield origin, row
    if empty:
        raise UserError(f"{path}: it has no record.")
