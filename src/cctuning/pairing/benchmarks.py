"""Find evaluation texts in training rows with an index of n-grams.

Each text field of an evaluation record is a text of its own, because a row with the question but not the options has
seen the question. A text of `N` tokens or more is found where the given share of its n-grams is in a row; one of
`SHORT` tokens or more where it is a whole prompt or parallel. Shorter texts are labels and names, and are ignored, as
are n-grams that many records of a file share, which belong to its template.

The index is two arrays, 12 bytes per n-gram.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cctuning.data.readers import Found, Records, data_format, files_in, local_path, open_records
from cctuning.data.schema import BadRow
from cctuning.data.text import Hashes, ngrams, tokens
from cctuning.data.text_files import numbered_lines
from cctuning.errors import UserError
from cctuning.files import file_hash

N = 8  # tokens in an n-gram
SHORT = 4  # fewest tokens of a text that is not found by coincidence
TEMPLATE = 20  # texts of a file that share an n-gram above which it belongs to the template


@dataclass(frozen=True)
class Benchmarks:
    """The index.

    Attributes:
        grams: hashes of n-grams, sorted.
        owners: of each, the text it is from.
        sizes: number of n-grams of each text.
        origins: file, line and field of each text.
        whole: hash of a short text to its number.
        notes: what could not be read.
    """

    grams: Hashes
    owners: NDArray[np.int32]
    sizes: NDArray[np.int64]
    origins: list[str]
    whole: dict[int, int]
    fingerprints: dict[str, str]
    notes: list[str]

    @classmethod
    def read(cls, paths: Sequence[str]) -> Benchmarks:
        """Index every file under `paths`: the records of data files, the lines of others."""
        grams: list[Hashes] = [np.empty(0, np.uint64)]
        owners: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        origins: list[str] = []
        whole: dict[int, int] = {}
        prints: dict[str, str] = {}
        notes: list[str] = []
        files = [records for path in paths for records in _opened(path)]
        for records in tqdm(files, desc="evaluation texts", unit="file", disable=None):
            texts: list[tuple[str, list[str]]] = []
            bad, first = 0, ""
            for origin, record in records.iterate(records.columns or ()):
                if isinstance(record, BadRow):
                    bad, first = bad + 1, first or f"{origin}: {record}"
                else:
                    texts += [(f"{origin} ({field})", tokens(text)) for field, text in _texts(record)]
            prints |= records.fingerprints
            if bad:
                notes.append(
                    f"against: {bad} records or lines cannot be read and are not searched for, first: {first}"
                )
            held = [np.unique(ngrams(words, N)) for _, words in texts]
            every, times = np.unique(np.concatenate([grams[0], *held]), return_counts=True)
            template = every[times > TEMPLATE]
            for (origin, words), found in zip(texts, held, strict=True):
                own = found[~np.isin(found, template)]
                short = SHORT <= len(words) < N and whole.setdefault(_whole(words), len(origins)) == len(origins)
                if short or len(own):
                    grams.append(own)
                    owners.append(np.full(len(own), len(origins), np.int32))
                    origins.append(origin)
        if not origins:
            raise UserError(" ".join([f"against: no text of {SHORT} words or more under {', '.join(paths)}.", *notes]))
        every, owner = np.concatenate(grams), np.concatenate(owners)
        order = np.argsort(every)
        sizes = np.bincount(owner, minlength=len(origins))
        return cls(every[order], owner[order], sizes, origins, whole, prints, notes)

    def hit(self, asked: Sequence[str], answers: Sequence[str], share: float) -> str | None:
        """A description of the evaluation text of which a row holds `share` of the n-grams or more, or None.

        `asked` are its prompt and parallel, `answers` its responses: a short one may be an evaluation's answer by
        right, and is not looked up.
        """
        words = [tokens(text) for text in (*asked, *answers)]
        for part in words[: len(asked)]:
            number = self.whole.get(_whole(part)) if SHORT <= len(part) < N else None
            if number is not None:
                return f"it is the evaluation text {self.origins[number]}, word for word."
        found = np.unique(np.concatenate([ngrams(part, N) for part in words])) if words else np.empty(0, np.uint64)
        if not len(found) or not len(self.grams):
            return None
        first, last = (np.searchsorted(self.grams, found, side) for side in ("left", "right"))
        owners = [self.owners[a:b] for a, b in zip(first, last, strict=True) if b > a]
        if not owners:
            return None
        numbers, times = np.unique(np.concatenate(owners), return_counts=True)
        shares = times / self.sizes[numbers]
        best = int(shares.argmax())
        if shares[best] < share:
            return None
        return f"it contains {shares[best]:.0%} of the evaluation text {self.origins[numbers[best]]}."


def _whole(words: list[str]) -> int:
    return int(ngrams(words, len(words))[0])


def _opened(path: str) -> list[Records]:
    """The files in a directory, at any depth, with every split of saved data sets; a file or hub data set as it is."""
    place = local_path(path)
    if place.is_file() and data_format(place) is None:
        return [_lines(place)]
    if not place.is_dir() or (place / "state.json").is_file():  # written by datasets, for every split
        return open_records(path)
    inside = [*files_in(place), *sorted(one for one in place.iterdir() if one.is_dir())]
    inside = [one for one in inside if one.name[0] != "." and one.name != "dataset_dict.json"]
    return [records for one in inside for records in _opened(str(one))]


def _lines(path: Path) -> Records:
    """The lines of a file that is no data file: plain text, as FLORES is published."""
    prints: dict[str, str] = {}

    def iterate(wanted: Collection[str]) -> Found:
        try:
            prints[str(path)] = file_hash(path)
            for number, raw in numbered_lines(path):
                try:
                    line: dict[str, str] | BadRow = {"line": raw.decode()}
                except UnicodeDecodeError:
                    line = BadRow("line", "is not UTF-8.")
                yield f"{path}:{number}", line
        except (UserError, OSError) as error:
            yield str(path), BadRow("file", str(error))

    return Records(None, iterate, prints)


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a record, with its field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, field)
