"""Find evaluation texts in training rows with an index of n-grams.

Each text field of an evaluation record is a text of its own, because a row with the question but not the options has
seen the question. A text of `N` tokens or more is found where the given share of its n-grams is in a row; one of
`SHORT` tokens or more where it is a whole prompt or parallel. Shorter texts are labels and names, and are ignored, as
are n-grams that many records of a file share, which belong to its template.

The index is two arrays, 12 bytes per n-gram.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cctuning.data.readers import SUFFIXES, Records, data_format, local_path, open_records
from cctuning.data.schema import BadRow
from cctuning.data.text import Hashes, ngrams, tokens
from cctuning.errors import UserError

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
    """

    grams: Hashes
    owners: NDArray[np.int32]
    sizes: NDArray[np.int64]
    origins: list[str]
    whole: dict[int, int]
    fingerprints: dict[str, str]

    @classmethod
    def read(cls, paths: Sequence[str]) -> Benchmarks:
        """Index every data file under `paths`."""
        grams: list[Hashes] = [np.empty(0, np.uint64)]
        owners: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        origins: list[str] = []
        whole: dict[int, int] = {}
        prints: dict[str, str] = {}
        files = [records for path in paths for records in _opened(path)]
        for records in tqdm(files, desc="evaluation texts", unit="file", disable=None):
            prints |= records.fingerprints
            texts: list[tuple[str, list[str]]] = []
            for origin, record in records.iterate(records.columns or ()):
                if not isinstance(record, BadRow):
                    texts += [(f"{origin} ({field})", tokens(text)) for field, text in _texts(record)]
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
            raise UserError(f"against: no text of {SHORT} words or more under {', '.join(paths)}.")
        every, owner = np.concatenate(grams), np.concatenate(owners)
        order = np.argsort(every)
        return cls(every[order], owner[order], np.bincount(owner, minlength=len(origins)), origins, whole, prints)

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
    """The data in a directory, at any depth, with every split of saved data sets; a file or hub data set as it is."""
    folder = local_path(path)
    if not folder.is_dir():
        return open_records(path)
    files = sorted(file for file in folder.rglob("*") if data_format(file))
    saved = [file.parent for file in files if file.name == "state.json"]  # written by datasets, for every split
    plain = [file for file in files if file.parent not in saved and file.name != "dataset_dict.json"]
    if not files:
        raise UserError(f"against: {path}: no data file in it; expected files ending in {', '.join(SUFFIXES)}.")
    return [records for place in (*saved, *plain) for records in open_records(str(place))]


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
