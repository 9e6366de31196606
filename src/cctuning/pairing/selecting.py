"""`cctuning pair select`: choose the pairs of large parallel corpora that are nearest to a task.

Pairs are compared with the reference-language side of the task's rows. Each row in turn takes the pair nearest to it,
so that rare kinds of row are covered too; pairs that are nearly the same as a chosen one are skipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cctuning.data.parallel.filenames import pair_of_paths
from cctuning.data.parallel.pairs import load_parallel
from cctuning.data.readers import ROWS, local_path
from cctuning.data.row_reader import read_rows
from cctuning.data.schema import BadRow
from cctuning.data.text import flat, normalise, tokens
from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.identify import identify_language
from cctuning.languages import UNKNOWN, canonical, canonical_or_none, matching, region_notes
from cctuning.pairing import output
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.settings import check_values, option

CHUNK = 2000  # pairs that are read at once
MOST_ROWS = 2000  # rows of the task that pairs are compared with; of more, a sample
SPARE = 16  # candidates per row beyond its share
BLOCK = 500  # candidates that are compared at once
MEMORY = 256  # MiB of similarities that are computed at once

Vectors = Any  # rows of unit length, dense or sparse
Chosen = dict[str, list[tuple[int, float | None]]]  # by language: place in the corpus, similarity


@dataclass
class SelectOptions:
    """Corpus, task and number of pairs."""

    RANGES = {
        **{"count": (1, math.inf), "min_length": (0, math.inf), "max_length": (1, math.inf)},
        **{"near_duplicate": (0.01, 1), "check_against": (0.01, 1)},
    }
    corpus: list[str] = option(
        [], "Parallel text; the same as naming it first on the command line (docs/start/data.md)."
    )
    near: list[str] = option([], "Rows of the task, with their reference-language side.")
    count: int = option(2000, "Pairs per language.")
    output: str = option("", "New directory for rows.jsonl and the card.")
    lang: list[str] = option([], "Take only these languages.")
    by: str = option(
        "tfidf",
        "tfidf: words in common. encoder: meaning (--encoder). random: any pairs, as a control.",
        choices=["tfidf", "encoder", "random"],
    )
    encoder: str | None = option(None, "Sentence encoder of --by encoder: a name or directory (docs/guides/pair.md).")
    min_length: int = option(20, "Minimum length of the reference-language side, in characters.")
    max_length: int = option(400, "Maximum length of the reference-language side, in characters.")
    near_duplicate: float = option(0.8, "Similarity above which two pairs are near-duplicates; 1: only when equal.")
    against: list[str] = option([], "Files or directories of evaluation rows or text: pairs with them are left out.")
    check_against: float = option(0.6, "Share of an evaluation text's n-grams found in a pair (--against).")
    reference_language: str = option("en", "Language of the side that is compared.")
    bad_rows: str = option("skip", "skip: leave bad pairs out. error: stop at one.", choices=["error", "skip"])
    seed: int = option(0, "Of --by random, and of the sample of a large task.")
    overwrite: bool = option(False, "Replace an output that an earlier run wrote.")

    def __post_init__(self) -> None:
        if not self.corpus:
            raise UserError("no corpus: cctuning pair select CORPUS ... --near ROWS --count N --output DIR.")
        if not self.near and self.by != "random":
            raise UserError("--near: missing; name rows of the task (or --by random).")
        if self.near and self.by == "random":
            raise UserError("--near: --by random does not use it; leave one of them out.")
        if self.by == "encoder" and not self.encoder:
            raise UserError("--encoder: missing; name a sentence encoder, e.g. intfloat/multilingual-e5-small.")
        if self.encoder and self.by != "encoder":
            raise UserError(f"--encoder {self.encoder}: --by {self.by} does not use it; add --by encoder.")
        self.reference_language = canonical(self.reference_language, "--reference_language")
        check_values(type(self), vars(self), "pair select")
        self.lang = [canonical_or_none(lang) or lang for lang in self.lang]


def select(options: SelectOptions) -> dict[str, Any]:
    """Choose pairs, write rows.jsonl and the card, and return the card."""
    place, language = local_path(options.output), options.reference_language
    output.check(place, options.overwrite)
    only = {"lang": options.lang[0]} if len(options.lang) == 1 else {}
    paths = pair_of_paths(list(options.corpus), language)
    sources = [{**(one if isinstance(one, dict) else {"path": one}), **only} for one in paths]
    corpus, report = load_parallel(sources, reference_language=language, bad_rows=options.bad_rows)
    benchmarks = Benchmarks.read(options.against) if options.against else None
    fits, dropped = _fitting(corpus, options, benchmarks)
    task: list[str] = []
    chosen: Chosen = {}
    if options.by == "random":
        for lang, places in fits.items():
            drawn = np.random.default_rng(options.seed).permutation(places)[: options.count]
            chosen[lang] = [(int(place), None) for place in drawn]
    else:
        task = _task(options)
        chosen = _nearest(corpus, fits, task, options)
    notes = report.notes + (benchmarks.notes if benchmarks else [])
    for lang in options.lang:
        taken = matching(lang, chosen)
        notes += [] if taken else [f"--lang {lang}: no pair in the corpus can be chosen."]
        notes += region_notes(lang, taken)
    languages: dict[str, dict[str, Any]] = {}
    with output.draft(place) as folder:
        with (folder / ROWS).open("wb") as file:
            for lang, found in sorted(chosen.items()):
                for number, score in found:
                    pair = corpus[number]
                    row = {"text": pair["text"], f"text_{language}": pair["reference"], "lang": lang}
                    row |= {"origin": pair["origin"], **({} if score is None else {"similarity": round(score, 4)})}
                    file.write(output.line(row))
                languages[lang] = {"pairs": len(found), "of": report.languages.get(lang, 0)}
                if scores := [score for _, score in found if score is not None]:
                    languages[lang]["similarity"] = {"median": float(np.median(scores)), "least": min(scores)}
                if len(found) < options.count:
                    few = f"{lang}: {len(found)} pairs, fewer than --count {options.count}"
                    notes.append(f"{few}: no others are similar and distinct.")
        card = {
            **output.made_by("cctuning pair select", "scikit-learn"),
            "options": asdict(options),
            "rows": sum(map(len, chosen.values())),
            "languages": languages,
            "task_rows": len(task),
            "left_out": dropped,
            "sources": report.as_dict()["sources"],
            "notes": notes,
            "files": {ROWS: file_hash(folder / ROWS)},
        }
        output.write_card(folder, card)
    return card


def _task(options: SelectOptions) -> list[str]:
    """The reference-language side of the task's rows, each text once, at most `MOST_ROWS`."""
    found: dict[str, None] = {}
    bare: dict[str, None] = {}  # prompts of rows without a language and a reference
    language = options.reference_language
    for path in options.near:
        for _, row in read_rows(path, language):
            if isinstance(row, BadRow):
                continue
            if row.reference is not None:
                found[flat(row.reference)] = None
            elif row.lang == language:
                found[flat(row.prompt)] = None
            elif row.lang == UNKNOWN:
                bare[flat(row.prompt)] = None
    if bare and identify_language(bare)[0] == language:
        found |= bare
    if not found:
        raise UserError(
            f"--near {' '.join(options.near)}: no row has a side in {language}; pair them first (cctuning pair), or "
            "name rows in that language."
        )
    texts = list(found)
    if len(texts) > MOST_ROWS:
        kept = np.random.default_rng(options.seed).choice(len(texts), MOST_ROWS, replace=False)
        texts = [texts[place] for place in sorted(kept)]
    return texts


def _fitting(
    corpus: datasets.Dataset, options: SelectOptions, benchmarks: Benchmarks | None
) -> tuple[dict[str, NDArray[np.int64]], dict[str, int]]:
    """The places of pairs that may be chosen, by language, and the numbers left out, by reason."""
    every = set(corpus.unique("lang"))
    taken = {code for lang in options.lang for code in matching(lang, every)} if options.lang else every
    if not taken:
        raise UserError(f"--lang {' '.join(options.lang)}: the corpus has {', '.join(sorted(every))}.")
    fits: dict[str, list[int]] = {}
    dropped: Counter[str] = Counter()
    for number, (text, reference, lang) in enumerate(_pairs(corpus)):
        if lang not in taken:
            continue
        if not options.min_length <= len(reference) <= options.max_length:
            dropped["length"] += 1
        elif benchmarks and benchmarks.hit([text, reference], [], options.check_against):
            dropped["against"] += 1
        else:
            fits.setdefault(lang, []).append(number)
    if not fits:
        why = ", ".join(f"{reason} {times}" for reason, times in dropped.items())
        raise UserError(
            f"no pair is left ({why}): give another corpus, or other --min_length {options.min_length}, --max_length "
            f"{options.max_length} or --against."
        )
    return {lang: np.array(places) for lang, places in fits.items()}, dict(dropped)


def _pairs(corpus: datasets.Dataset) -> Iterator[tuple[str, str, str]]:
    """Text, reference and language of each pair."""
    for batch in corpus.iter(CHUNK):
        yield from zip(batch["text"], batch["reference"], batch["lang"], strict=True)


def _nearest(
    corpus: datasets.Dataset, fits: dict[str, NDArray[np.int64]], task: list[str], options: SelectOptions
) -> Chosen:
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    pairs, rows = _vectors(corpus, task, options)
    chosen: Chosen = {}
    for lang, places in tqdm(sorted(fits.items()), desc="choosing", unit="language", disable=None):
        own = pairs[places]
        near = NearestNeighbors(metric="cosine", algorithm="brute").fit(own)
        kept = math.ceil(2 * options.count / len(task)) + SPARE
        while True:
            kept = min(kept, len(places))
            with config_context(working_memory=MEMORY):
                distances, found = near.kneighbors(rows, kept)
            taken = distinct(own, in_turn(1 - distances, found), corpus[places]["reference"], options)
            if len(taken) == options.count or kept == len(places):
                break
            kept *= 8  # too many near-duplicates: look further
        chosen[lang] = [(int(places[number]), score) for number, score in taken.items()]
    return chosen


def _vectors(corpus: datasets.Dataset, task: list[str], options: SelectOptions) -> tuple[Vectors, Vectors]:
    """Vectors of the corpus' references and of the task's rows."""
    references = (reference for _, reference, _ in _pairs(corpus))
    if options.by == "encoder":
        from cctuning.pairing.encoder import open_encoder

        encoder = open_encoder(str(options.encoder))
        return encoder(list(references)), encoder(task)
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    words: dict[str, Any] = {"tokenizer": tokens, "token_pattern": None, "lowercase": False, "ngram_range": (1, 2)}
    hashing = HashingVectorizer(**words, norm=None, alternate_sign=False, dtype=np.float32)
    counts = hashing.transform(references)
    weights = TfidfTransformer(sublinear_tf=True).fit(counts)
    return weights.transform(counts, copy=False), weights.transform(hashing.transform(task))


def in_turn(similarities: NDArray[Any], places: NDArray[np.int64]) -> dict[int, float]:
    """Places and their best similarity: the nearest of every row, then the second of every row, and so on.

    Both arguments are (rows, kept), the nearest first.
    """
    found: dict[int, float] = {}
    for rank in range(places.shape[1]):
        for row in np.argsort(-similarities[:, rank], kind="stable"):
            place, score = int(places[row, rank]), float(similarities[row, rank])
            if score > 0:
                found[place] = max(score, found.get(place, 0.0))
    return found


def distinct(
    vectors: Vectors, ranked: dict[int, float], texts: Sequence[str], options: SelectOptions
) -> dict[int, float]:
    """The first `count` of the ranked pairs that are not near-duplicates of an earlier one."""
    from sklearn.metrics.pairwise import cosine_similarity

    taken: list[int] = []
    said: set[str] = set()
    order = list(ranked)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        similar = cosine_similarity(vectors[block], vectors[taken + block])
        columns = list(range(len(taken)))  # of those that were taken
        for number, place in enumerate(block):
            text = normalise(texts[place])
            alike = options.near_duplicate < 1 and similar[number, columns].max(initial=0) >= options.near_duplicate
            if text not in said and not alike and len(taken) < options.count:
                said.add(text)
                columns.append(similar.shape[1] - len(block) + number)
                taken.append(place)
    return {place: ranked[place] for place in taken}
