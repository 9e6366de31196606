"""Load parallel text without answers as a `datasets.Dataset` on disk, with a report.

Pairs are streamed; eight bytes of each stay in memory, to find duplicates. docs/start/data.md lists the formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cctuning.data.parallel.columns import Absent, Pair
from cctuning.data.parallel.filenames import pair_of_paths
from cctuning.data.parallel.files import Opened, read_pairs
from cctuning.data.reports import ParallelReport, ParallelSourceReport, drawn
from cctuning.data.schema import CHUNK, Skipped
from cctuning.data.sources import ParallelSource
from cctuning.data.tables import on_disk
from cctuning.data.text import Seen, tokens
from cctuning.errors import UserError
from cctuning.identify import between, scripts_apart
from cctuning.languages import canonical_or_none, same

SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "reference", "lang", "origin")])
LISTED = 1000  # skipped pairs that the report lists for a source
FEW = 4  # pairs of a language below which a note is written
SAMPLE = 40  # pairs of a language whose sides are identified
SENTENCE = 5  # fewest words of a text whose language is identified: names confuse lingua
WRONG = 0.1  # likelihood of its own language below which a side is in the other's


def load_parallel(
    sources: Sequence[ParallelSource | Mapping[str, Any] | str] | ParallelSource | Mapping[str, Any] | str,
    *,
    reference_language: str = "en",
    seed: int = 0,
    bad_rows: str = "error",
) -> tuple[datasets.Dataset, ParallelReport]:
    """Read and check parallel text.

    Args:
        sources: in order. Two paths in a row that are the two sides of a corpus (`corpus.sw`, `corpus.en`) are one
            source.
        reference_language: language of one side of every pair.
        seed: of the samples that `weight` draws.
        bad_rows: `skip`: leave out bad pairs in all sources.

    Returns:
        The data set with the columns `text`, `reference`, `lang` (canonical) and `origin` (file:line), all text; and
        the report. Repeated pairs are left out.

    Raises:
        UserError: a file cannot be read or holds no parallel text; a pair is bad and its source does not skip bad
            pairs; both sides are in one language.
    """
    language = canonical_or_none(reference_language)
    if language is None:
        raise UserError(f"reference_language: unknown language {reference_language!r}; expected a code, e.g. en.")
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


def _drawn(source: ParallelSource, count: int, seed: list[int]) -> NDArray[np.int64]:
    """Places of the pairs that take part, after `weight`."""
    if not count:
        return np.empty(0, np.int64)  # all of them are in earlier sources
    copies, places = drawn(source, count, seed, "pairs")
    return np.concatenate([np.tile(np.arange(count), copies), places]).astype(np.int64)


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
        if why or not account.duplicates:
            raise UserError(f"{source.path}: no parallel text with {language}: {why or 'it is empty.'}")
    if account.absent:
        report.notes.append(f"{source.path}: {account.absent} records were skipped, the first: {absent}")
    if account.duplicates:
        report.notes.append(f"{source.path}: {account.duplicates} repeated pairs were left out.")


def _is_wrong(text: str, code: str, other: str) -> bool:
    likely = between(text, code, other)
    return likely is not None and likely < WRONG


def _are_sentences(pair: Pair) -> bool:
    return min(len(tokens(pair.text)), len(tokens(pair.reference))) >= SENTENCE


def _checked(pairs: Iterator[Pair], account: ParallelSourceReport, report: ParallelReport) -> Iterator[Pair]:
    """Pass pairs on; at the end check that the two sides are in two languages.

    Raises:
        UserError: most pairs have the same text on both sides, or a side is in the other side's language.
    """
    looked: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        account.identical += pair.text == pair.reference
        sample = looked.setdefault(pair.lang, [])
        if len(sample) < SAMPLE and (scripts_apart(pair.lang, report.reference_language) or _are_sentences(pair)):
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
        wrong: Counter[str] = Counter()
        for text, reference in sample:
            off = _is_wrong(text, lang, language), _is_wrong(reference, language, lang)
            wrong[{(True, True): "both", (True, False): "text", (False, True): "reference"}.get(off, "")] += 1
        what, times = wrong.most_common(1)[0]
        if not what or times < FEW or times <= len(sample) / 2:
            continue
        if what == "both":
            raise UserError(f"{path}: the sides are swapped: the text is in {language}, the reference in {lang}.")
        raise UserError(
            f"{path}: in {times} of {len(sample)} pairs checked the {what} is not in "
            f"{lang if what == 'text' else language}; check lang:, and that the sides are in two languages."
        )
