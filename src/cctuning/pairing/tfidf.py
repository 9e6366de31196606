"""TF-IDF vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cctuning.data.text import tokens

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEATURES = 2**20


class WordVectors:
    """TF-IDF over words and pairs of words, hashed, without a vocabulary in memory.

    Term frequencies are 1 + log(count), document frequencies those of the corpus, smoothed as scikit-learn does; rows
    have unit length.
    """

    def __init__(self, documents: Iterator[list[str]]) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.hashing = HashingVectorizer(
            analyzer=words_and_pairs, n_features=FEATURES, norm=None, alternate_sign=False, dtype=np.float32
        )
        count, frequencies = 0, np.zeros(FEATURES, np.int64)
        for texts in documents:
            count += len(texts)
            frequencies += np.bincount(self.hashing.transform(texts).indices, minlength=FEATURES)
        self.idf = (np.log((1 + count) / (1 + frequencies)) + 1).astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """A sparse matrix with a row for each text."""
        from sklearn.preprocessing import normalize

        found = self.hashing.transform(texts)
        found.data = (1 + np.log(found.data)) * self.idf[found.indices]
        return normalize(found, copy=False)


def words_and_pairs(text: str) -> list[str]:
    """Words, and pairs of consecutive words."""
    words = tokens(text)
    return words + [f"{one} {other}" for one, other in pairwise(words)]
