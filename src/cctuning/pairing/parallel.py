"""Parallel text as candidates: `cctuning.data` reads it, here the checks of `pair` are what turns it away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cctuning.data.parallel.columns import Pair
from cctuning.data.parallel.files import read_pairs
from cctuning.data.sources import ParallelSource
from cctuning.errors import UserError
from cctuning.pairing.candidates import Candidate, Problem, Rejected
from cctuning.pairing.options import PairSource

if TYPE_CHECKING:
    from cctuning.pairing.assemble import Account

PARTS = {"prompt": "text", "reference": "reference", "lang": "lang"}  # a row's parts as a pair has them


def source_of(source: PairSource) -> ParallelSource:
    """What `load_parallel` would be told.

    Raises:
        UserError: a column is mapped that parallel text has no part for.
    """
    for part in source.columns:
        if part not in PARTS:
            raise UserError(f"source {source.path}: columns: {part}: parallel text has {', '.join(PARTS)} alone.")
    return ParallelSource(
        source.path,
        reference=source.english.get("path"),
        name=source.name,
        split=source.split,
        lang=source.lang,
        columns={PARTS[part]: name for part, name in source.columns.items()},
        where=source.where,
    )


def candidates(account: Account, number: int, language: str) -> Iterator[Candidate | Rejected]:
    """The pairs of a source as rows without answers.

    Raises:
        UserError: it cannot be read or holds no parallel text.
    """
    source = account.source
    count = 0
    for opened, found in read_pairs(source_of(source), language):
        account.fingerprints.update(opened.fingerprints)
        if isinstance(found, Pair):
            text, reference, lang, origin, reference_origin, key = found
            kept = key if isinstance(key, (str, int)) else None
            yield Candidate(number, origin, text, None, lang, reference, None, reference_origin, kept)
        else:
            origin, bad = found
            yield Rejected(number, origin, [Problem("row", str(bad))])
        count += 1
        if count == source.limit:
            return
    if not count:
        raise UserError(f"{source.path}: no pair in it.")
