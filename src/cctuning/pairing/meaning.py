"""Check with a sentence encoder that the two sides of a row mean the same.

Usual similarities differ by language, and some texts are similar to everything. So each row is compared with the
others of its block, as in margin scoring (Artetxe and Schwenk 2019): the features are the similarity of its two sides,
and that of each side to the nearest other rows, for the encoder's vectors and for centred ones (the mean of each side
subtracted). For each language a logistic regression is trained on the rows themselves: their own pairs, most of them
correct, against pairs that are mismatched on purpose. Two halves score each other, and rows classified as wrong are
left out of the next fit; so half of the rows may be wrong.

With the estimated share of wrong rows the scores become probabilities. A row is rejected where it is less likely to be
correct than the threshold, so that a file without wrong rows loses next to none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cctuning.data.text import flat
from cctuning.pairing.corpus_checks import Corpus
from cctuning.pairing.output import line_at
from cctuning.pairing.row_checks import Problem

BLOCK = 1000  # rows that are compared with each other
LEAST = 100  # fewest rows of a language to learn from
NEAREST = (1, 4)  # numbers of them whose mean is a feature
# Mismatched pairs: a text with the reference so many rows on (0: half a block), and whether the true counterparts of
# the text and of the reference are hidden. In real data the counterparts of a wrong row may be there or not; both are
# learned.
WRONG = ((1, False, True), (-1, False, True), (3, True, True), (7, True, False), (0, True, True))
LEARN = 20_000  # rows of a language that are learned from
ROUNDS = 4  # fits, each without the rows that the last one classified as wrong
ODD = 0.005  # share of correct rows that look mismatched to an encoder, such as idioms
NAMES = 3  # median words of texts that are no sentences
MOSTLY_WRONG = 0.2  # share of rows classified as correct at which no row is left out: the fit is not to be trusted

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


def _near(similarity: Floats, names: Places, hidden: list[Places]) -> list[Floats]:
    """The mean similarity of each row (rows, others) to its nearest others, without the hidden ones."""
    hide = np.any([names == own[:, None] for own in hidden], axis=0)
    left = np.where(hide, similarity.min(axis=1, keepdims=True), similarity)
    most = min(max(NEAREST), left.shape[1])
    top = np.sort(np.partition(left, -most, axis=1)[:, -most:], axis=1)
    return [top[:, -count:].mean(axis=1) for count in NEAREST]


def features(texts: Floats, references: Floats) -> Callable[..., Floats]:
    """A function that gives the features (rows, 10) of each text paired with a reference.

    Texts and references are unit vectors (rows, width). The function takes the places of the references, and whether
    the true counterparts of texts and of references are hidden.
    """
    places = np.arange(len(texts))
    # Equal texts have the same number and are hidden together.
    names = [np.unique(side, axis=0, return_inverse=True)[1].ravel() for side in (texts, references)]
    centred = [_unit(side - side.mean(axis=0)) for side in (texts, references)]
    similarities = [texts @ references.T, centred[0] @ centred[1].T]

    def of(where: Places, hide_text: bool = False, hide_reference: bool = False) -> Floats:
        hidden = [names[1][where], *([names[1]] if hide_text else [])]
        hidden_too = [names[0], *([names[0][where]] if hide_reference else [])]
        columns = []
        for similarity in similarities:
            columns.append(similarity[places, where])
            columns += _near(similarity, names[1], hidden)
            columns += _near(similarity.T[where], names[0], hidden_too)
        return np.stack(columns, axis=1).astype(np.float32)

    return of


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def block(texts: Floats, references: Floats, learn: bool = True) -> tuple[Floats, Floats]:
    """The features of the rows' own pairs, (rows, 10), and of mismatched ones, (len(WRONG), rows, 10).

    Without `learn` there are no mismatched ones: (len(WRONG), 0, 10).
    """
    of, places = features(texts, references), np.arange(len(texts))
    own = of(places)
    if not learn:
        return own, np.zeros((len(WRONG), 0, own.shape[1]), np.float32)
    wrong = [of((places + (shift or len(places) // 2)) % len(places), *hide) for shift, *hide in WRONG]
    return own, np.stack(wrong)


def scored(own: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    """Log odds that a pair is correct, for own pairs (rows) and mismatched ones (kinds, rows).

    Args:
        own: features, (rows, 10).
        wrong: features of mismatched pairs of the first rows, (kinds, learned rows, 10).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learned = wrong.shape[1]
    kept = np.ones(learned, bool)
    out, out_wrong = np.zeros(len(own), np.float32), np.zeros(wrong.shape[:2], np.float32)
    for _ in range(ROUNDS):
        for half in (0, 1):
            theirs, mine = slice(1 - half, learned, 2), slice(half, learned, 2)
            right, bad = own[theirs][kept[theirs]], wrong[:, theirs].reshape(-1, own.shape[1])
            model = make_pipeline(StandardScaler(), LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
            model.fit(np.concatenate([right, bad]), np.repeat([1, 0], [len(right), len(bad)]))
            out[half::2] = model.decision_function(own[half::2])
            out_wrong[:, mine] = [model.decision_function(kind) for kind in wrong[:, mine]]
        if (out[:learned] > 0).mean() > MOSTLY_WRONG:
            kept = out[:learned] > 0
    return out, out_wrong


def share_wrong(scores: Floats) -> float:
    """The share of wrong rows that explains the scores best, by expectation maximisation."""
    wrong = 0.1
    for _ in range(200):
        wrong = 1 - float(probability(scores, wrong).mean())
    return wrong


def probability(scores: Floats, wrong: float) -> NDArray[np.float64]:
    """The probability that each row is correct, by its log odds and the share of wrong rows."""
    odds = np.exp(np.clip(np.asarray(scores, np.float64), -30, 30))
    right = (1 - wrong) * ((1 - ODD) * odds + ODD)
    return right / (right + wrong)


def judge(
    corpus: Corpus, file: IO[bytes], language: str, encoder: Callable[[list[str]], Floats], least: float
) -> tuple[dict[int, Problem], dict[str, dict[str, Any]], list[str]]:
    """Compare the two sides of every row; those are rejected that are correct with a probability below `least`.

    Args:
        file: has the rows, at the offsets of the corpus.
        encoder: texts to vectors of unit length.

    Returns:
        Row number to problem; by language what was learned, for the card (shares are estimates); and notes.
    """
    problems: dict[int, Problem] = {}
    learned: dict[str, dict[str, Any]] = {}
    few: list[str] = []
    short: list[str] = []
    for number, lang in enumerate(corpus.langs):
        rows = np.flatnonzero((corpus.rows["lang"] == number) & ~np.isnan(corpus.rows["ratio"]))
        if len(rows) < LEAST:
            few += [f"{lang} {len(rows)}"] if len(rows) else []
            continue
        own: list[Floats] = []
        wrong: list[Floats] = []
        words: list[int] = []
        for places in np.array_split(rows, round(len(rows) / BLOCK) or 1):
            some = [json.loads(line_at(file, offset)) for offset in corpus.rows["offset"][places].tolist()]
            sides = [[flat(row[column]) for row in some] for column in ("prompt", f"prompt_{language}")]
            words += [len(text.split()) for text in sides[1]]
            texts, references = map(encoder, sides)
            right, bad = block(texts, references, sum(map(len, own)) < LEARN)
            own.append(right)
            wrong.append(bad)
        if np.median(words) < NAMES:
            short.append(lang)
        every = np.concatenate(own)
        scores, scores_wrong = scored(every, np.concatenate(wrong, axis=1))
        rate = share_wrong(scores)
        usual = float(np.median(every[:, 0]))
        found_next, found_random = (float((probability(scores_wrong[k], rate) < least).mean()) for k in (0, -1))
        told = {"rows": len(rows), "wrong": rate, "similarity": usual}
        learned[lang] = {**told, "found_next": found_next, "found_random": found_random}
        for place in np.flatnonzero(probability(scores, rate) < least).tolist():
            similarity, near = every[place, 0], every[place, [1, 1 + len(NEAREST)]].mean()
            says = f"the sides have a similarity of {similarity:.2f}, {usual:.2f} is usual; other rows: {near:.2f}."
            problems[int(rows[place])] = Problem("meaning", says)
    notes = [f"too few rows to check with an encoder (under {LEAST}): {', '.join(few)}."] if few else []
    if short:
        notes.append(
            f"most texts of {', '.join(short)} have one or two words; a sentence encoder rejects right names too, "
            "above all where they differ (Uholanzi, Netherlands): leave --encoder out for lists of names."
        )
    return problems, learned, notes
