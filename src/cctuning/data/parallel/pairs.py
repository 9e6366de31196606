"""Load parallel text without answers as a `datasets.Dataset` on disk, with a report.

Pairs are streamed; eight bytes of each stay in memory, to find duplicates. docs/start/data.md lists the formats.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cctuning.data.checks import FEW, check_sides
from cctuning.data.parallel.columns import Absent, Pair
from cctuning.data.parallel.filenames import pair_of_paths
from cctuning.data.parallel.files import PairReader, identified
from cctuning.data.sources import ParallelReport, ParallelSource, ParallelSourceReport
from cctuning.data.tables import in_batches, on_disk
from cctuning.data.text import Seen, flat
from cctuning.errors import UserError
from cctuning.identify import Spread
from cctuning.languages import canonical, same

SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "reference", "lang", "origin")])
SAMPLE = 40  # pairs of a language whose sides are identified


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
    language = canonical(reference_language, "reference_language")
    if isinstance(sources, (str, Mapping, ParallelSource)):
        sources = [sources]
    named = ParallelSource.each(pair_of_paths(list(sources), language), "parallel", bad_rows)
    report, seen = ParallelReport(language), Seen()
    report.sources = [ParallelSourceReport(source.path) for source in named]

    def rows() -> Iterator[dict[str, Any]]:
        for source, account in zip(named, report.sources, strict=True):
            for pair in _checked(_pairs(source, language, seen, account, report), account, report):
                yield {name: getattr(pair, name) for name in SCHEMA.names}

    dataset = on_disk(in_batches(rows(), SCHEMA), SCHEMA)
    start, parts = 0, []
    for number, (source, account) in enumerate(zip(named, report.sources, strict=True)):
        places = np.arange(account.read)
        if source.weight != 1 and account.read:  # 0: all of them are in earlier sources
            places = source.drawn(account.read, [number, seed & (2**63 - 1)])
        parts.append(start + places)
        start += account.read
        if source.weight != 1:
            account.languages = dict(Counter(dataset.select(parts[-1])["lang"]).most_common())
        account.pairs = len(places)
    report.pairs = sum(map(len, parts))
    if any(source.weight != 1 for source in named):
        dataset = dataset.select(np.concatenate(parts))
    few = [f"{lang} {times}" for lang, times in report.languages.items() if times < FEW]
    if few:
        report.notes.append(f"languages with fewer than {FEW} pairs: {', '.join(few)}.")
    return dataset, report


def check_pairs(dataset: datasets.Dataset, language: str, where: str) -> tuple[datasets.Dataset, list[str]]:
    """Parallel text from Python, in the schema of rows, after the checks of `load_parallel`; and notes.

    Repeated pairs are left out, and a language that no row names is identified. Rows without a reference, which are in
    the reference language, are only passed on.
    """
    account, report, seen, kept = ParallelSourceReport(where), ParallelReport(language), Seen(), list[int]()
    rows = dataset.select_columns(["prompt", "reference", "lang", "origin"])
    taken, notes = "", list[str]()
    if not {*rows["lang"]} - {"", language}:
        texts = [flat(row["prompt"]) for row in rows if row["reference"]]
        if not texts:
            raise UserError(f"{where}: no parallel text: all rows are labelled {language}; correct their lang.")
        taken, note = identified(texts, language, where, "add a column lang")
        notes.append(note)

    def pairs() -> Iterator[Pair]:
        for place, row in enumerate(rows):
            text, reference = flat(row["prompt"]), row["reference"] and flat(row["reference"])
            if not seen.add(text, reference or "", row["lang"]):
                account.duplicates += 1
                continue
            kept.append(place)
            if reference:
                account.read += 1
                yield Pair(text, reference, row["lang"] or taken, row["origin"])

    deque(_checked(pairs(), account, report), maxlen=0)
    if account.duplicates:
        report.notes.append(f"{where}: {account.duplicates} repeated pairs were left out.")
        dataset = dataset.select(kept)
    if taken:
        langs = [taken if reference else language for reference in dataset["reference"]]
        dataset = dataset.remove_columns("lang").add_column("lang", langs)
    return dataset, notes + report.notes


def _pairs(
    source: ParallelSource, language: str, seen: Seen, account: ParallelSourceReport, report: ParallelReport
) -> Iterator[Pair]:
    """The good pairs of a source, each once, up to its limit."""
    absent, first_absent = 0, ""
    reader = PairReader(source, language)
    for found in reader.read():
        if isinstance(found, Pair):
            if not seen.add(found.text, found.reference, found.lang):
                account.duplicates += 1
                continue
            account.read += 1
            yield found
            if account.read == source.limit:
                break
        elif isinstance(found[1], Absent):
            absent, first_absent = absent + 1, first_absent or f"{found[0]}: {found[1]}"
        else:
            report.skip(source, account, *found)
    account.fingerprints = reader.fingerprints
    report.notes += reader.notes()
    first = report.first_bad(account)
    if not account.read:
        why = f"all {account.skipped} are bad, the first: {first}" if first else ""
        why = why or (f"the first record: {first_absent}" if absent else "")
        if why or not account.duplicates:
            raise UserError(f"{source.path}: no parallel text with {language}: {why or 'it is empty.'}")
    if first:
        report.notes.append(f"{source.path}: {account.skipped} bad records were left out, the first: {first}")
    if absent:
        report.notes.append(f"{source.path}: {absent} records were skipped, the first: {first_absent}")
    if account.duplicates:
        report.notes.append(f"{source.path}: {account.duplicates} repeated pairs were left out.")


def _checked(pairs: Iterator[Pair], account: ParallelSourceReport, report: ParallelReport) -> Iterator[Pair]:
    """Pass pairs on and count their languages; at the end check that the two sides are in two languages."""
    counts, identical = Counter[str](), 0
    samples: dict[str, Spread[tuple[str, str]]] = {}
    for pair in pairs:
        identical += pair.text == pair.reference
        counts[pair.lang] += 1
        samples.setdefault(pair.lang, Spread(SAMPLE)).add((pair.text, pair.reference))
        yield pair
    account.languages = dict(counts.most_common())
    language, path = report.reference_language, account.path
    if identical > account.read / 2 and account.read >= FEW:
        raise UserError(
            f"{path}: in {identical} of {account.read} pairs both sides are the same; give the text in "
            "another language beside its reference."
        )
    if identical:
        report.notes.append(f"{path}: in {identical} pairs both sides are the same (names, numbers).")
    for lang, spread in samples.items():
        if not same(lang, language):
            report.notes += check_sides(spread.sample(), lang, language, path)
