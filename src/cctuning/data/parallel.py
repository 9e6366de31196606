"""Parallel text without answers: the one reader of it for every verb.

A source is a file, a directory or a hub data set in any layout that parallel text is published in (docs/data.md lists
them); what comes out is a `datasets.Dataset` of pairs on disk, with an account. Pairs stream: what is held of each is
eight bytes, by which a repeated one is known.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cctuning.data.on_disk import on_disk
from cctuning.data.parallel_columns import PARTS, Absent, Pair
from cctuning.data.parallel_files import Opened, open_parallel, pair_of_paths
from cctuning.data.parallel_langs import known, likeness, same
from cctuning.data.rows import CHUNK, BadRow, Skipped
from cctuning.errors import UserError, nearest

SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "reference", "lang", "origin")])
LISTED = 1000  # skipped pairs of a source that the report lists; all are counted
FEW = 4  # pairs below which a language is noted
LOOKED_AT = 40  # pairs of a language whose two sides are held against their languages
ONE_LANGUAGE = 0.5  # likeness to the other side's language above which both are in it
WRONG = 0.1  # likeness to its own language below which a side is in the other's


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


@dataclass
class ParallelSourceReport:
    """What one source gave. `read` counts good pairs before `weight`, `pairs` and `languages` those that take part."""

    path: str
    read: int = 0
    pairs: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    absent: int = 0  # records without this pair of languages, passed over
    duplicates: int = 0
    identical: int = 0  # pairs whose sides are the same, kept
    layouts: dict[str, str] = field(default_factory=dict)  # file to how it was read
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass
class ParallelReport:
    """The account of a load: counts per source, what was skipped and why, and notes a person should see."""

    reference_language: str
    sources: list[ParallelSourceReport] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)  # the first 1,000 of each source
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Pairs in all."""
        return sum(source.pairs for source in self.sources)

    @property
    def languages(self) -> dict[str, int]:
        """Pairs per language, the most frequent first."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.languages)
        return dict(total.most_common())

    @property
    def fingerprints(self) -> dict[str, str]:
        """File (or hub data set) to its fingerprint, over all sources."""
        return {name: value for source in self.sources for name, value in source.fingerprints.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        skipped = [skip._asdict() for skip in self.skipped]
        return {**asdict(self), "pairs": self.pairs, "languages": self.languages, "skipped": skipped}


class Seen:
    """A set of 64-bit hashes at about 16 bytes each: sorted, with a small set of the latest beside."""

    def __init__(self) -> None:
        self._sorted, self._latest = np.empty(0, np.uint64), set[int]()

    def add(self, *words: str) -> bool:
        """Add what the words hash to; whether it is new."""
        text = "\x1f".join(words).encode(errors="surrogatepass")
        value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._latest or (place < len(self._sorted) and int(self._sorted[place]) == value):
            return False
        self._latest.add(value)
        if len(self._latest) > max(50_000, len(self._sorted) // 8):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted, self._latest = np.sort(np.concatenate([self._sorted, latest])), set()
        return True


def load_parallel(
    sources: Sequence[ParallelSource | Mapping[str, Any] | str] | ParallelSource | Mapping[str, Any] | str,
    *,
    reference_language: str = "en",
    seed: int = 0,
    bad_rows: str = "error",
) -> tuple[datasets.Dataset, ParallelReport]:
    """Read and check parallel text.

    Args:
        sources: in the order in which their pairs follow each other. Two bare paths one after the other that are the
            two sides of a corpus (`corpus.sw`, `corpus.en`) are one source.
        reference_language: what one side of every pair is in.
        seed: of the samples that weights draw.
        bad_rows: `skip`: leave bad pairs out in all sources.

    Returns:
        The data set, its columns `text`, `reference`, `lang` (canonical) and `origin` (file:line), all text; and the
        account. A pair that an earlier one repeats is left out.

    Raises:
        UserError: a file cannot be read or holds no parallel text; a pair is bad and its source does not say to skip
            such pairs; both sides are in one language.
    """
    language = known(reference_language)
    if language is None:
        raise UserError(f"reference_language: {reference_language!r} is no language; expected a code, e.g. en.")
    if isinstance(sources, (str, Mapping, ParallelSource)):
        sources = [sources]
    if not sources:
        raise UserError("parallel: none given; name at least one file, directory or hub data set.")
    joined = pair_of_paths(list(sources), language)
    named = [ParallelSource.from_dict(source, f"parallel[{number}]") for number, source in enumerate(joined)]
    if bad_rows == "skip":
        named = [replace(source, bad_rows="skip") for source in named]
    report, seen, parts = ParallelReport(language), Seen(), []
    langs: list[Counter[str]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for source in named:
            account = ParallelSourceReport(source.path)
            report.sources.append(account)
            langs.append(Counter())
            held: list[dict[str, str]] = []
            for pair in _checked(_pairs(source, language, seen, account, report), account, report):
                langs[-1][pair.lang] += 1
                held.append({name: getattr(pair, name) for name in SCHEMA.names})
                if len(held) == CHUNK:
                    yield pa.RecordBatch.from_pylist(held, SCHEMA)
                    held = []
            yield pa.RecordBatch.from_pylist(held, SCHEMA)

    dataset = on_disk(batches(), SCHEMA)
    start = 0
    for number, (source, account) in enumerate(zip(named, report.sources, strict=True)):
        parts.append(start + _drawn(source, account.read, [number, seed & (2**63 - 1)]))
        start += account.read
    if any(source.weight != 1 for source in named):
        chosen = np.concatenate(parts)
        dataset = dataset.select(chosen)
        ends = np.cumsum([0, *map(len, parts)])
        langs = [Counter(dataset[int(one) : int(end)]["lang"]) for one, end in pairwise(ends)]
    for counts, account in zip(langs, report.sources, strict=True):
        account.pairs, account.languages = counts.total(), dict(counts.most_common())
    few = [f"{lang} {times}" for lang, times in report.languages.items() if times < FEW]
    if few:
        report.notes.append(f"languages with fewer than {FEW} pairs: {', '.join(few)}.")
    return dataset, report


def _drawn(source: ParallelSource, count: int, seed: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Places of `round(weight * count)` pairs: whole copies, then a sample without replacement in file order."""
    copies, rest = divmod(round(source.weight * count), count)
    if not copies and not rest:
        raise UserError(f"{source.path}: weight: {source.weight} of {count} pairs leaves none; raise it.")
    sample = np.sort(np.random.default_rng(seed).choice(count, rest, replace=False))
    return np.concatenate([np.tile(np.arange(count), copies), sample]).astype(np.int64)


def read_pairs(source: ParallelSource, language: str) -> Iterator[tuple[Opened, Pair | tuple[str, BadRow]]]:
    """Every pair of a source as it stands in its files, with the file, or the origin of a bad one and what it is.

    Raises:
        UserError: a file cannot be read or is no parallel text.
    """
    for opened in open_parallel(source, language):
        for found in opened.pairs():
            yield opened, found


def _pairs(
    source: ParallelSource, language: str, seen: Seen, account: ParallelSourceReport, report: ParallelReport
) -> Iterator[Pair]:
    """The good pairs of a source, each once, up to its limit."""
    absent = first_reason = ""
    files: dict[str, Opened] = {}
    for opened, found in read_pairs(source, language):
        files[opened.path] = opened
        if isinstance(found, Pair):
            if not seen.add(found.text, found.reference, found.lang):
                account.duplicates += 1
                continue
            account.read += 1
            yield found
            if account.read == source.limit:
                break
            continue
        origin, bad = found
        line = f"{origin}: {bad.field}: {bad.reason}"
        if isinstance(bad, Absent):
            account.absent, absent = account.absent + 1, absent or line
            continue
        if source.bad_rows == "error":
            raise UserError(f"{line} (Or set bad_rows: skip for this source to leave out such pairs.)")
        account.skipped, first_reason = account.skipped + 1, first_reason or line
        if account.skipped <= LISTED:
            report.skipped.append(Skipped(origin, bad.field, bad.reason))
    for opened in files.values():
        account.layouts[opened.path] = opened.layout
        account.fingerprints |= opened.fingerprints
        report.notes += opened.notes
    if not account.read:
        why = f"all {account.skipped} are bad, the first: {first_reason}" if first_reason else ""
        why = why or (f"the first record: {absent}" if absent else "")
        why = why or ("all repeat an earlier source's." if account.duplicates else "it is empty.")
        raise UserError(f"{source.path}: no parallel text with {language}: {why}")
    if account.absent:
        report.notes.append(f"{source.path}: {account.absent} records were passed over, the first: {absent}")
    if account.duplicates:
        report.notes.append(f"{source.path}: {account.duplicates} repeated pairs were left out.")


def _checked(pairs: Iterator[Pair], account: ParallelSourceReport, report: ParallelReport) -> Iterator[Pair]:
    """The pairs as they come; at the end, whether their two sides are in two languages.

    Raises:
        UserError: most pairs are the same on both sides, or a side is in the other side's language.
    """
    looked: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        account.identical += pair.text == pair.reference
        sample = looked.setdefault(pair.lang, [])
        if len(sample) < LOOKED_AT:
            sample.append((pair.text, pair.reference))
        yield pair
    language, path = report.reference_language, account.path
    if account.identical > account.read / 2 and account.read >= FEW:
        raise UserError(
            f"{path}: in {account.identical} of {account.read} pairs both sides are the same; give the text in "
            "another language beside its reference."
        )
    if account.identical:
        report.notes.append(f"{path}: in {account.identical} pairs both sides are the same (names, numbers).")
    for lang, sample in looked.items():
        if len(sample) < FEW or same(lang, language):
            continue
        text, reference = (" ".join(side) for side in zip(*sample, strict=True))
        own, its = likeness(text, lang, language), likeness(reference, language, lang)
        if own < WRONG and its < WRONG:
            raise UserError(f"{path}: the sides are swapped: the text reads as {language}, the reference as {lang}.")
        if own < WRONG or its < WRONG:
            side, wrong, other = ("text", lang, language) if own < WRONG else ("reference", language, lang)
            said = (
                f"{path}: the {side} of its {lang} pairs is not in {wrong} (likeness {min(own, its):.2f}); check "
                "lang:, and that both sides are not in one language."
            )
            if likeness(text if side == "text" else reference, other, wrong) > ONE_LANGUAGE:
                raise UserError(said)
            report.notes.append(said)  # it reads as neither: names, a dialect, a language that is not known well
