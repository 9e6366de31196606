"""Translate texts with an engine and a cache: split, mask, look up, translate, check, reassemble.

A text is split into segments, and what must not change is masked. Each distinct segment that is not in the cache is
translated, and its translation is written to the cache at once. Where a translation has lost a marker or its line
structure, the segment is translated a second time in smaller pieces (line by line, sentence by sentence, and around
protected spans), which cannot lose either.

Texts are processed in windows: large enough for batches of similar length, small enough to keep memory flat. Copies,
loops, wrong languages and lengths are found by the checks of rows (`row_checks.py`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cctuning.errors import UserError, nearest
from cctuning.languages import parse, same
from cctuning.pairing.translation.segments import Piece, line_marks, mask, protected, restore, split
from cctuning.settings import option

WINDOW = 1000  # texts
ENGINES = {"seq2seq": "Seq2Seq", "chat": "Chat", "function": "Function"}  # module to class
CACHE = "translations.sqlite3"
_LINES = re.compile(r"(\s*\n\s*)")


@dataclass(frozen=True)
class Answer:
    """A translation, or the reason why there is none: one of `text` and `problem` is None.

    `passing`: the problem is temporary (a server was down), so it is not cached.
    """

    text: str | None
    problem: str | None = None
    passing: bool = False


Done = Callable[[int, Answer], None]  # called with the index of a segment and its answer, from any thread


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How texts are split and what is protected; part of every engine's options."""

    split: str = option(
        "long",
        "sentences: translate sentence by sentence. long: split only what is longer than max_chars.",
        choices=("sentences", "long"),
    )
    max_chars: int = option(3000, "Longest segment, in characters.", least=20)


class Engine:
    """A model, a server or a function that translates segments.

    Attributes:
        counts: requests, retries and tokens, where the engine knows them.
    """

    name: str
    options: SegmentOptions
    counts: Counter[str]

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """Everything besides the segment that decides its translation; part of the cache key, so never a secret."""
        raise NotImplementedError

    def run(self, segments: Sequence[str], source: str, target: str, done: Done) -> None:
        """Call `done` once for each segment, as soon as its answer is there."""
        raise NotImplementedError

    def close(self) -> None:
        """Release memory and connections."""


class Cache:
    """Answers by key in an SQLite file of a directory. Safe for threads and for several processes.

    The key is a hash of everything that decides the answer: the engine with its settings, the languages, the text.
    With SQLite's write-ahead log an answer is safe once it is written, also if the process is killed. On network file
    systems SQLite's locks are unreliable.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.path = cache_dir / CACHE
        self._lock = threading.Lock()
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # Autocommit: an answer is on disk when `put` returns. The timeout waits for another process that writes.
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None
        table = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, text TEXT, problem TEXT) WITHOUT ROWID"
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", table):
            self._execute(statement)
        self.get(b"")  # fails if the table has other columns

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be used as a cache ({error}); give a directory that can be written.")

    def _execute(self, statement: str, *values: Any) -> Any:
        """The first row of the result."""
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    @staticmethod
    def key(identity: Mapping[str, Any], *parts: str) -> bytes:
        """The key of an answer: of what decides it (JSON types), and of languages and text."""
        content = json.dumps([identity, *parts], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).digest()

    def get(self, key: bytes) -> Answer | None:
        found = self._execute("SELECT text, problem FROM answers WHERE key = ?", key)
        return Answer(*found) if found else None

    def put(self, key: bytes, answer: Answer) -> None:
        """Write an answer, also a lasting problem such as one cut off at the token limit."""
        if not answer.passing:
            self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", key, answer.text, answer.problem)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def open_translator(options: Mapping[str, Any], cache_dir: Path) -> Translator:
    """Open a translator; `options` are `engine` (seq2seq, chat or function) and those of the engine."""
    rest = dict(options)
    kind = rest.pop("engine", None)
    if kind not in ENGINES:
        hint = nearest(str(kind), ENGINES)
        raise UserError(f"translation: engine: expected one of {', '.join(ENGINES)}, got {kind!r}.{hint}")
    module = importlib.import_module(f"cctuning.pairing.translation.{kind}")  # transformers takes seconds to import
    return Translator(getattr(module, ENGINES[kind])(rest), Cache(Path(cache_dir)))


class Translator:
    """Translates texts with an engine and a cache."""

    def __init__(self, engine: Engine, cache: Cache) -> None:
        self.name = engine.name
        self._engine, self._options, self._cache = engine, engine.options, cache
        self._counts: Counter[str] = Counter(texts=0, characters=0, segments=0, cache_hits=0, second_way=0)
        self._bar: Any = None

    def translate(self, texts: Sequence[str], source: str, target: str) -> Iterator[Answer]:
        """One answer for each text, in the same order. A text without letters is returned unchanged.

        Raises:
            UserError: at once for a language that the engine does not know or that is both source and target; later
                where the engine cannot go on. Answers until then are in the cache.
        """
        if same(source, target):
            raise UserError(f"translation: source {source!r} and target {target!r} are one language.")
        identity = self._engine.identity(source, target)

        def windows() -> Iterator[Answer]:
            total, read = sum(map(len, texts)), 0
            with tqdm(total=total, unit="char", unit_scale=True, desc=f"{source}-{target}", disable=None) as self._bar:
                for start in range(0, len(texts), WINDOW):
                    window = texts[start : start + WINDOW]
                    results = self._window(window, source, target, identity)
                    read += sum(map(len, window))
                    self._bar.update(read - self._bar.n)
                    yield from results

        return windows()

    def _window(self, texts: Sequence[str], source: str, target: str, identity: Mapping[str, Any]) -> list[Answer]:
        options, pair = self._options, (source, target)
        plans = [split(text, options.max_chars, options.split == "sentences", *protected(text)) for text in texts]
        self._counts.update(texts=len(texts), characters=sum(map(len, texts)))
        outcomes = self._outcomes((piece for plan in plans for piece in plan), identity, *pair)
        again = {
            piece: split(piece.text, options.max_chars, True, blocks=piece.spans)
            for piece, outcome in outcomes.items()
            if outcome is None
        }
        self._counts["second_way"] += len(again)
        parts = self._outcomes((part for plan in again.values() for part in plan), identity, *pair)
        outcomes |= {piece: _joined(plan, parts, *pair) for piece, plan in again.items()}
        return [_joined(plan, outcomes, *pair) for plan in plans]

    def _outcomes(
        self, pieces: Iterable[Piece], identity: Mapping[str, Any], source: str, target: str
    ) -> dict[Piece, Answer | None]:
        """The result of each piece that is translated; None if it has lost a marker or a line."""
        masked = {piece: mask(piece.text, piece.spans) for piece in pieces if not piece.kept}
        answers: dict[str, Answer] = {}
        missing: dict[str, bytes] = {}
        for text in dict.fromkeys(text for text, _ in masked.values()):
            key = self._cache.key(identity, source, target, text)
            if found := self._cache.get(key):
                answers[text] = found
            else:
                missing[text] = key
        self._counts.update(segments=len(answers) + len(missing), cache_hits=len(answers))
        segments = list(missing)

        def done(index: int, answer: Answer) -> None:
            self._cache.put(missing[segments[index]], answer)
            answers[segments[index]] = answer
            self._bar.update(len(segments[index]))

        if segments:
            self._engine.run(segments, source, target, done)
        return {piece: _outcome(piece, answers[text], text, kept) for piece, (text, kept) in masked.items()}

    def usage(self) -> dict[str, int]:
        """Counts since this translator was opened, with those of the engine.

        `segments` are distinct ones; `second_way` are those translated in pieces because a marker or a line was lost.
        """
        return {**self._engine.counts, **self._counts}

    def close(self) -> None:
        self._engine.close()
        self._cache.close()


def _outcome(piece: Piece, answer: Answer, masked: str, kept: list[str]) -> Answer | None:
    """The result of a segment; None if it has lost a marker or a line and must be translated in pieces."""
    if answer.text is None:
        return Answer(None, answer.problem)
    if not answer.text.strip():
        return Answer(None, "empty translation")
    text = restore(_laid_out(masked, answer.text) or "", kept)
    if text:
        return Answer(text)
    whole = not piece.spans and "\n" not in piece.text
    return Answer(None, "the translation has more lines than the source") if whole else None


def _joined(plan: Sequence[Piece], outcomes: Mapping[Piece, Answer | None], source: str, target: str) -> Answer:
    """Reassemble a text; the first problem of a segment is the text's problem."""
    source_spaced, target_spaced = spaced(source), spaced(target)
    parts: list[str] = []
    for place, piece in enumerate(plan):
        text = piece.text
        if not piece.kept:
            outcome = outcomes[piece]
            assert outcome is not None
            if outcome.text is None:
                return Answer(None, f"{outcome.problem} (at {piece.text[:40]!r})")
            text = outcome.text
        elif text == " " and source_spaced and not target_spaced and 0 < place < len(plan) - 1:
            continue  # no space between sentences in Chinese and Japanese
        if target_spaced and not source_spaced and parts and _apart(parts[-1][-1], text[0]):
            parts.append(" ")
        parts.append(text)
    return Answer("".join(parts))


def spaced(tag: str) -> bool:
    """Whether sentences are separated by spaces in this language's script."""
    found = parse(tag)
    return found is None or found.script not in ("Hans", "Hant", "Jpan", "Hani")


def _laid_out(source_text: str, translation: str) -> str | None:
    """The translation with the line breaks and indents of its source; None if the lines or list marks differ."""
    gaps = _LINES.split(source_text)[1::2]
    lines = _LINES.split(translation.strip())[::2]
    if len(lines) != len(gaps) + 1:
        return None
    # The mark of a single line was split off before.
    if gaps and line_marks(source_text)[1:] != line_marks("\n".join(lines))[1:]:
        return None
    return "".join(part for pair in zip(lines, [*gaps, ""], strict=True) for part in pair)


def _apart(left: str, right: str) -> bool:
    """Whether a space belongs between two parts that had none in a source without spaces."""
    return (left.isalnum() or left in ".!?,;:)]\"'`”") and (right.isalnum() or right in "([\"'`“")
