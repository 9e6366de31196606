"""`cctuning pair select`: choose the pairs of large parallel corpora that are nearest to a task.

Pairs are compared with the reference-language side of the task's rows. Each row in turn takes the pair nearest to it,
so that rare kinds of row are covered too; pairs that are nearly the same as a chosen one are skipped. The corpus is
streamed: only the best few pairs of each row are in memory.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cctuning.data.parallel.filenames import pair_of_paths
from cctuning.data.parallel.pairs import load_parallel
from cctuning.data.reports import ParallelReport
from cctuning.data.row_reader import read_rows
from cctuning.data.schema import BadRow
from cctuning.data.text import flat, normalise
from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.identify import identify_language
from cctuning.languages import canonical_or_none, matching
from cctuning.markdown import table
from cctuning.pairing import output
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.tfidf import WordVectors

CHUNK = 2000  # pairs whose vectors are computed at once
MOST_ROWS = 2000  # rows of the task that pairs are compared with; of more, a sample
SPARE = 16  # candidates per row beyond its share
UNKNOWN = "und"
BLOCK = 500  # candidates that are compared at once

Vectors = Any  # rows of unit length, dense or sparse


@dataclass
class SelectOptions:
    """Corpus, task and number of pairs."""

    corpus: list[str] = field(
        default_factory=list,
        metadata={"help": "Parallel text; the same as naming it first on the command line (docs/start/data.md)."},
    )
    near: list[str] = field(
        default_factory=list, metadata={"help": "Rows of the task, with their reference-language side."}
    )
    count: int = field(default=2000, metadata={"help": "Pairs per language."})
    output: str = field(default="", metadata={"help": "New directory for rows.jsonl and the card."})
    lang: list[str] = field(default_factory=list, metadata={"help": "Take only these languages."})
    by: str = field(
        default="tfidf",
        metadata={
            "help": "tfidf: words in common. encoder: meaning (--encoder). random: any pairs, as a control.",
            "choices": ["tfidf", "encoder", "random"],
        },
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Sentence encoder of --by encoder: a name or directory (docs/start/data.md)."}
    )
    min_length: int = field(default=20, metadata={"help": "Fewest characters of the reference-language side."})
    max_length: int = field(default=400, metadata={"help": "Most characters of the reference-language side."})
    near_duplicate: float = field(
        default=0.8, metadata={"help": "Similarity above which two pairs are near-duplicates; 1: only when equal."}
    )
    against: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or directories of evaluation rows: pairs with them are left out."},
    )
    check_against: float = field(
        default=0.6, metadata={"help": "Share of an evaluation text's n-grams found in a pair (--against)."}
    )
    reference_language: str = field(default="en", metadata={"help": "Language of the side that is compared."})
    bad_rows: str = field(
        default="skip",
        metadata={"help": "skip: leave bad pairs out. error: stop at one.", "choices": ["error", "skip"]},
    )
    seed: int = field(default=0, metadata={"help": "Of --by random, and of the sample of a large task."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that an earlier run wrote."})

    def __post_init__(self) -> None:
        if not self.corpus:
            raise UserError("no corpus: cctuning pair select CORPUS ... --near ROWS --count N --output DIR.")
        if not self.near and self.by != "random":
            raise UserError("--near: missing; name rows of the task (or --by random).")
        if self.by == "encoder" and not self.encoder:
            raise UserError("--encoder: missing; name a sentence encoder, e.g. intfloat/multilingual-e5-small.")
        for name, least in (("count", 1), ("min_length", 0), ("max_length", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: expected {least} or more, got {getattr(self, name)}.")
        for name in ("near_duplicate", "check_against"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name}: expected above 0 and at most 1, got {getattr(self, name)}.")


@dataclass
class Best:
    """For each row of the task, the nearest pairs of one language, nearest first."""

    scores: NDArray[np.float32]  # (rows, kept)
    places: NDArray[np.int64]  # (rows, kept); -1: none

    @classmethod
    def empty(cls, rows: int, kept: int) -> Best:
        """No pairs yet."""
        return cls(np.full((rows, kept), -1, np.float32), np.full((rows, kept), -1, np.int64))

    def add(self, similarities: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        """Add pairs: `similarities` is (rows, pairs)."""
        scores = np.concatenate([self.scores, similarities], axis=1)
        kept = self.scores.shape[1]
        known = np.concatenate([self.places, np.broadcast_to(places, similarities.shape)], axis=1)
        # The earlier of equals, so that the result does not depend on the size of a chunk.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.places = np.take_along_axis(known, order, axis=1)

    def in_turn(self) -> list[tuple[int, float]]:
        """Places with scores: the nearest pair of every row, then the second of every row, and so on; each once."""
        found: dict[int, float] = {}
        for rank in range(self.scores.shape[1]):
            for row in np.argsort(-self.scores[:, rank], kind="stable"):
                place, score = int(self.places[row, rank]), float(self.scores[row, rank])
                if place >= 0 and score > 0:
                    found[place] = max(score, found.get(place, 0.0))
        return list(found.items())


def select(options: SelectOptions) -> dict[str, Any]:
    """Choose pairs and write rows.jsonl and the card.

    Returns:
        The card, as in card.json.

    Raises:
        UserError: the corpus or the task cannot be read, or no pair fits.
    """
    place = Path(options.output).expanduser()
    output.check(place, options.overwrite)
    corpus, report = load_parallel(_sources(options), reference_language=options.reference_language)
    benchmarks = Benchmarks.read(options.against) if options.against else None
    fits, dropped = _fitting(corpus, options, benchmarks)
    task = _task(options) if options.by != "random" else []
    chosen = _at_random(fits, options) if options.by == "random" else _nearest(corpus, fits, task, options)
    notes = list(report.notes)
    for lang, count in sorted({lang: len(found) for lang, found in chosen.items()}.items()):
        if count < options.count:
            notes.append(
                f"{lang}: {count} pairs, fewer than --count {options.count}: no others are similar and distinct."
            )
    with output.draft(place) as folder:
        path = folder / output.ROWS
        with path.open("wb") as file:
            for lang in sorted(chosen):
                for number, score in chosen[lang]:
                    file.write(output.line(_row(corpus[number], score, options.reference_language)))
        card = _card(options, report, chosen, dropped, len(task), notes, file_hash(path))
        output.write_card(folder, card, markdown(card))
    return card


def _sources(options: SelectOptions) -> list[dict[str, Any]]:
    lang = {"lang": options.lang[0]} if len(options.lang) == 1 else {}
    joined = pair_of_paths(list(options.corpus), options.reference_language)
    named = [one if isinstance(one, dict) else {"path": one} for one in joined]
    return [{**one, **lang, "bad_rows": options.bad_rows} for one in named]


def _task(options: SelectOptions) -> list[str]:
    """The reference-language side of the task's rows, each text once, at most `MOST_ROWS`.

    Raises:
        UserError: no row has one.
    """
    found: dict[str, None] = {}
    bare: dict[str, None] = {}  # prompts of rows without a language and a reference
    language = options.reference_language
    for path in options.near:
        for _, row in read_rows(path, UNKNOWN, language):
            if isinstance(row, BadRow):
                continue
            if row.reference is not None:
                found[flat(row.reference)] = None
            elif row.lang == language:
                found[flat(row.prompt)] = None
            elif row.lang == UNKNOWN:
                bare[flat(row.prompt)] = None
    if bare and identify_language(" ".join(list(bare)[:40])) == language:
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
    wanted = [canonical_or_none(lang) or lang for lang in options.lang]
    every = set(corpus.unique("lang"))
    taken = {code for lang in wanted for code in matching(lang, every)} if wanted else every
    if not taken:
        raise UserError(f"--lang {' '.join(options.lang)}: the corpus has {', '.join(sorted(every))}.")
    fits: dict[str, list[int]] = {}
    dropped: Counter[str] = Counter()
    for start in range(0, len(corpus), CHUNK):
        batch = corpus[start : start + CHUNK]
        for number, (text, reference, lang) in enumerate(
            zip(batch["text"], batch["reference"], batch["lang"], strict=True), start
        ):
            if lang not in taken:
                continue
            if not options.min_length <= len(reference) <= options.max_length:
                dropped["length"] += 1
            elif benchmarks and benchmarks.hit([text, reference], [], options.check_against):
                dropped["against"] += 1
            else:
                fits.setdefault(lang, []).append(number)
    if not fits:
        raise UserError(
            f"no pair has between --min_length {options.min_length} and --max_length {options.max_length} characters."
        )
    return {lang: np.array(places) for lang, places in fits.items()}, dict(dropped)


Chosen = dict[str, list[tuple[int, float | None]]]  # by language: place in the corpus, similarity


def _at_random(fits: dict[str, NDArray[np.int64]], options: SelectOptions) -> Chosen:
    chosen: Chosen = {}
    for lang, places in sorted(fits.items()):
        drawn = np.random.default_rng(options.seed).permutation(places)[: options.count]
        chosen[lang] = [(int(place), None) for place in drawn]
    return chosen


def _nearest(
    corpus: datasets.Dataset, fits: dict[str, NDArray[np.int64]], task: list[str], options: SelectOptions
) -> Chosen:
    vectors: Callable[[Sequence[str]], Vectors]
    if options.by == "tfidf":
        vectors = WordVectors(corpus[start : start + CHUNK]["reference"] for start in range(0, len(corpus), CHUNK))
    else:
        from cctuning.pairing.encoder import open_encoder

        vectors = open_encoder(str(options.encoder))
    rows = vectors(task)
    chosen: Chosen = {}
    for lang, places in tqdm(sorted(fits.items()), desc="choosing", unit="language", disable=None):
        kept = math.ceil(2 * options.count / len(task)) + SPARE
        while True:
            best = _best(corpus, places, vectors, rows, min(kept, len(places)))
            found = _distinct(corpus, best.in_turn(), vectors, options)
            if len(found) >= options.count or kept >= len(places):
                break
            kept *= 8  # too many near-duplicates: look further
        chosen[lang] = list(found)
    return chosen


def _best(
    corpus: datasets.Dataset, places: NDArray[np.int64], vectors: Callable[..., Vectors], rows: Vectors, kept: int
) -> Best:
    best = Best.empty(rows.shape[0], kept)
    for start in range(0, len(places), CHUNK):
        chunk = places[start : start + CHUNK]
        similarities = rows @ vectors(corpus[chunk]["reference"]).T
        best.add(_dense(similarities), chunk)
    return best


def _dense(matrix: Any) -> NDArray[np.float32]:
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix, dtype=np.float32)


def _distinct(
    corpus: datasets.Dataset,
    ranked: list[tuple[int, float]],
    vectors: Callable[..., Vectors],
    options: SelectOptions,
) -> list[tuple[int, float]]:
    """The first `count` of the ranked pairs that are not near-duplicates of an earlier one."""
    taken: list[tuple[int, float]] = []
    said: set[str] = set()
    held: Any = None
    for start in range(0, len(ranked), BLOCK):
        block = ranked[start : start + BLOCK]
        texts = corpus[[place for place, _ in block]]["reference"]
        found = vectors(texts)
        within = _dense(found @ found.T)
        before = _dense(found @ held.T).max(axis=1) if held is not None else np.zeros(len(block))
        kept: list[int] = []
        for number, text in enumerate(texts):
            alike = max([float(before[number]), *within[number, kept]]) >= options.near_duplicate
            if normalise(text) in said or (alike and options.near_duplicate < 1):
                continue
            said.add(normalise(text))
            kept.append(number)
            taken.append(block[number])
            if len(taken) == options.count:
                return taken
        held = _stacked(held, found[kept]) if kept else held
    return taken


def _stacked(one: Any, other: Any) -> Any:
    if one is None:
        return other
    if hasattr(one, "todense"):
        from scipy.sparse import vstack

        return vstack([one, other], format="csr")
    return np.concatenate([one, other])


def _row(pair: dict[str, Any], score: float | None, language: str) -> dict[str, Any]:
    row = {"text": pair["text"], f"text_{language}": pair["reference"], "lang": pair["lang"], "origin": pair["origin"]}
    return row if score is None else {**row, "similarity": round(score, 4)}


def _card(
    options: SelectOptions,
    report: ParallelReport,
    chosen: Chosen,
    dropped: dict[str, int],
    rows: int,
    notes: list[str],
    print_: str,
) -> dict[str, Any]:
    languages: dict[str, dict[str, Any]] = {}
    for lang, found in sorted(chosen.items()):
        scores = [score for _, score in found if score is not None]
        languages[lang] = {"pairs": len(found), "of": report.languages.get(lang, 0)}
        if scores:
            languages[lang] |= {"similarity": {"median": float(np.median(scores)), "least": min(scores)}}
    return {
        "made_by": f"cctuning pair select, cc-tuning {version('cc-tuning')}, scikit-learn {version('scikit-learn')}",
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": {name: getattr(options, name) for name in options.__dataclass_fields__},
        "rows": sum(len(found) for found in chosen.values()),
        "languages": languages,
        "task_rows": rows,
        "left_out": dropped,
        "sources": report.as_dict()["sources"],
        "notes": notes,
        "files": {output.ROWS: print_},
    }


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    options = card["options"]
    lines = [f"# {card['rows']} pairs, chosen by {options['by']}", "", f"{card['made_by']}, {card['made_at']}.", ""]
    if card["task_rows"]:
        lines += [f"Nearest to {card['task_rows']} rows of {', '.join(options['near'])}.", ""]
    rows = []
    for lang, told in card["languages"].items():
        figures = told.get("similarity")
        cells = [f"{figures['median']:.2f}", f"{figures['least']:.2f}"] if figures else ["", ""]
        rows.append([lang, told["pairs"], told["of"], *cells])
    lines.append(table(["language", "pairs", "of", "similarity, median", "least"], rows))
    left = ", ".join(f"{reason} {count}" for reason, count in card["left_out"].items()) or "none"
    lines += ["", f"Left out before choosing: {left}.", "", "## Sources", ""]
    lines += [f"- {source['path']}: {source['read']} pairs" for source in card["sources"]]
    lines += ["", "## Notes", "", *(f"- {note}" for note in card["notes"])] if card["notes"] else []
    return "\n".join(lines) + "\n"
