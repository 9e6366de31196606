"""Read each source of a `pair` run and find, join or make the parallel of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cctuning.data.layouts import LANG_COLUMNS
from cctuning.data.parallel.columns import Pair
from cctuning.data.parallel.files import PairReader
from cctuning.data.readers import local_path
from cctuning.data.row_reader import RowReader
from cctuning.data.schema import BadRow, Message, Row, Text, as_messages
from cctuning.data.sources import BaseSource, ParallelSource
from cctuning.data.text import flat
from cctuning.errors import UserError
from cctuning.pairing.options import PairOptions, PairSource
from cctuning.pairing.row_checks import Candidate, Problem
from cctuning.pairing.translation import Translator, open_translator

CHUNK = 5000  # rows in memory at once: translators batch many texts better than one
INDEX = "index"  # as the key of a join: the order of rows
PAIR_PARTS = {"prompt": "text", "reference": "reference", "lang": "lang"}  # a row's parts as parallel text names them
Candidates = Iterator[Candidate]


@dataclass
class Account:
    """Reads one source, and counts what it gave, for the card."""

    number: int
    source: PairSource
    options: PairOptions
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)  # requests and tokens by engine

    def __post_init__(self) -> None:
        self.language = self.options.reference_language

    def candidates(self) -> Candidates:
        """The rows, each with its parallel or with the reason it has none; at most `limit` are read."""
        ways = {"given": self._given, "join": self._joined, "parallel": self._parallel}
        return ways.get(self.source.way, self._made)()

    def _limited(self, rows: Candidates) -> Candidates:
        for row in islice(rows, self.source.limit):
            self.read += 1
            yield row
        if not self.read:
            filtered = " with these values (where)" if self.source.where else ""
            raise UserError(f"{self.source.path}: no record to pair{filtered}.")

    def _told(self, path: str, reader: RowReader | PairReader) -> None:
        """Keep what a reader has to say when it has been read."""
        self.fingerprints |= reader.fingerprints
        self.notes += [f"{path}: {note}" for note in reader.notes()] if path else reader.notes()

    def _given(self) -> Candidates:
        """Rows as their file has them; without a parallel they are rejected, except where it is to be made."""
        source = self.source
        reader = RowReader(self.language, source.columns, source.lang, source.way == "given", text_is_prompt=True)
        read = reader.read(source, source.where, also=["id"])
        yield from self._limited(Candidate.of(row, origin, record, self.number) for origin, record, row in read)
        self._told(source.path, reader)

    def _parallel(self) -> Candidates:
        """Pairs of parallel text as rows without a response."""
        source = self.source
        for part in source.columns:
            if part not in PAIR_PARTS:
                known = ", ".join(PAIR_PARTS)
                raise UserError(f"source {source.path}: columns: {part}: parallel text has only {known}.")
        columns = {PAIR_PARTS[part]: name for part, name in source.columns.items()}
        given = {name: getattr(source, name) for name in ("name", "split", "lang", "where")}
        text = ParallelSource(source.path, columns=columns, reference=source.english.get("path"), **given)
        reader = PairReader(text, self.language)

        def rows() -> Candidates:
            for found in reader.read():
                if isinstance(found, Pair):
                    row = Row(found.text, None, found.lang, found.reference, None, found.origin)
                    candidate = Candidate.of(row, found.origin, {"id": found.id}, self.number)
                    candidate.reference_origin = found.reference_origin
                    yield candidate
                else:
                    yield Candidate.of(found[1], found[0], found[1].record, self.number)

        yield from self._limited(rows())
        self._told("", reader)

    def _joined(self) -> Candidates:
        """Rows with the parallel that another file has under the same key."""
        source, side = self.source, self.source.english
        by_index = source.key == [INDEX]
        also = [] if by_index else source.key
        same = source if side["path"] == source.path else BaseSource(side["path"])
        other = BaseSource(
            side["path"],
            name=side.get("name", same.name),
            split=side.get("split", same.split),
            lang=self.language,
            columns=dict(side.get("columns", {})),
        )
        theirs = RowReader(self.language, other.columns, other.lang, text_is_prompt=True, others={*LANG_COLUMNS})
        reader = RowReader(self.language, source.columns, source.lang, text_is_prompt=True)
        index = ReferenceSide(source.key, other.path, theirs.read(other, side.get("where", {}), also))
        self._told(other.path, theirs)
        if index.unused:
            self.notes.append(
                f"{other.path}: {len(index.unused)} records cannot be joined, the first: {index.unused[0]}"
            )

        def rows() -> Candidates:
            for count, (origin, record, row) in enumerate(reader.read(source, source.where, ["id", *also])):
                found = Candidate.of(row, origin, record, self.number)
                found.reference = found.reference_response = None
                if not found.problems and found.lang != self.language:
                    index.match(found, key_of(record, count, source.key))
                    found.record = dict(record) if found.problems else None
                yield found

        yield from self._limited(rows())
        self._told(source.path, reader)
        if own := reader.parts.get("reference") or reader.parts.get("reference_messages"):
            self.notes.append(
                f"{source.path}: its column {own} is not used: the parallels are joined from {other.path}."
            )
        if by_index and self.read not in (source.limit, index.records):
            raise UserError(
                f"{source.path}: {self.read} records, where {other.path} has {index.records}: joined by index they "
                "would be out of step. Join by key columns, or correct the files."
            )

    def _made(self) -> Candidates:
        """Rows whose parallels are translated, or whole rows in other languages."""
        source, engine = self.source, self.source.engine or self.options.engine
        if not engine:
            raise UserError(f"source {source.path}: {source.way} needs an engine (docs/guides/translate.md).")
        with closing(open_translator(engine, local_path(self.options.cache_dir))) as translator:
            if source.way == "translate":
                yield from translate_prompts(self._given(), translator, self.language)
            else:
                source.lang = source.lang or self.language
                yield from translate_rows(self._given(), translator, self.language, source.into)
            self.usage[translator.name] = translator.usage()


def key_of(record: Mapping[str, Any], number: int, key: Sequence[str]) -> str | None:
    """The record's key as text; None where a column of it is missing or empty. `5`, `5.0` and `"5"` are one key."""
    if list(key) == [INDEX]:
        return str(number)
    parts = [record.get(column) for column in key]
    if any(part is None or part == "" for part in parts):
        return None
    # pandas makes floats of whole numbers where one is missing
    whole = (int(part) if isinstance(part, float) and part.is_integer() else part for part in parts)
    said = [part if isinstance(part, (list, dict)) else str(part) for part in whole]
    return json.dumps(said, ensure_ascii=False, default=str)


class ReferenceSide:
    """The records of the reference language under their keys, in memory.

    A key with several records is used only where they all have the same prompt.

    Attributes:
        records: how many there are, good or not; the position is the key where rows are joined by index.
        unused: those that are not rows or have no key, with the reason.
    """

    def __init__(self, key: Sequence[str], path: str, rows: Iterable[tuple[str, Mapping[str, Any], Row | BadRow]]):
        self.key, self.records, self.unused = key, 0, list[str]()
        # Key to the different prompts under it, each with its response and origin.
        self._found: dict[str, dict[str, tuple[str | None, str]]] = {}
        for number, (origin, record, row) in enumerate(rows):
            self.records += 1
            found = key_of(record, number, key)
            if isinstance(row, BadRow):
                self.unused.append(f"{origin}: {row}")
            elif found is None:
                columns = ", ".join(record)
                self.unused.append(f"{origin}: no value under {', '.join(key)}; it has the columns {columns}.")
            else:
                prompt = json.dumps(row.prompt, ensure_ascii=False)
                self._found.setdefault(found, {}).setdefault(prompt, (row.response, origin))
        if not self._found:
            first = self.unused[0] if self.unused else "it is empty."
            raise UserError(f"{path}: no record can be joined; the first: {first}")

    def match(self, row: Candidate, key: str | None) -> None:
        """Give `row` the parallel under `key`, or the reason why it has none as its problem."""
        found = self._found.get(key or "", {})
        if len(found) == 1:
            ((prompt, (row.reference_response, row.reference_origin)),) = found.items()
            row.reference = json.loads(prompt)
            return
        if key is None:
            says = f"its key is empty ({', '.join(self.key)})."
        elif not found:
            says = f"no record of the other side has the key {key}."
        else:
            where = " and ".join([origin for _, origin in found.values()][:2])
            says = f"the key {key} has {len(found)} different prompts on the other side: {where}."
        row.problems.append(Problem("join", says))


def translate_prompts(rows: Candidates, translator: Translator, language: str) -> Candidates:
    """Translate each prompt into its parallel; rows in the reference language stay as they are."""
    while chunk := list(islice(rows, CHUNK)):
        foreign = [row for row in chunk if not row.problems and row.lang != language]
        for lang in sorted({row.lang for row in foreign}):
            own = [row for row in foreign if row.lang == lang]
            for row, text in translated(own, [row.prompt for row in own], translator, lang, language):
                row.reference = text
        yield from chunk


def translate_rows(rows: Candidates, translator: Translator, language: str, into: Sequence[str]) -> Candidates:
    """Translate prompt and response of rows in the reference language; the original row is the parallel."""
    while chunk := list(islice(rows, CHUNK)):
        good = [row for row in chunk if not row.problems]
        yield from (row for row in chunk if row.problems)
        for row in good:
            if row.lang != language:
                raise UserError(f"{row.origin}: lang is {row.lang}; way: translation starts from rows in {language}.")
        for lang in into:
            made = [
                replace(
                    row, lang=lang, reference=row.prompt, reference_response=row.response, thinking=None, problems=[]
                )
                for row in good
            ]
            for row, prompt in translated(made, [row.prompt for row in made], translator, language, lang):
                row.prompt = prompt
            answered = [row for row in made if row.response is not None and not row.problems]
            responses = [row.response or "" for row in answered]
            for row, response in translated(answered, responses, translator, language, lang):
                row.response = flat(response)
            for row, source in zip(made, good, strict=True):
                row.record = source.as_row(language) if row.problems else None
                yield row


def translated(
    rows: Iterable[Candidate], texts: Sequence[Text], translator: Translator, source: str, target: str
) -> Iterator[tuple[Candidate, Text]]:
    """Each row with the translation of its text, messages one by one; a row whose text has none gets a problem.

    What tools answered, tool calls and names stay as they are; thinking is left out.
    """
    asked = [[turn["content"] for turn in as_messages(text) if turn["role"] != "tool"] for text in texts]
    done = translator.translate([part for parts in asked for part in parts], source, target)
    for row, text, parts in zip(rows, texts, asked, strict=True):
        answers = list(islice(done, len(parts)))
        problem = next((answer.problem for answer in answers if answer.text is None), None)
        if problem:
            row.problems.append(Problem("translation", problem))
            continue
        contents = (str(answer.text) for answer in answers)
        yield row, next(contents) if isinstance(text, str) else [_with_content(turn, contents) for turn in text]


def _with_content(turn: Message, contents: Iterator[str]) -> Message:
    """A turn with the next of the translated contents, unless it is a tool's."""
    content = turn["content"] if turn["role"] == "tool" else next(contents)
    return {**{key: value for key, value in turn.items() if key != "thinking"}, "content": content}
