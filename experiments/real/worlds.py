"""Worlds: public data with the same items in every language.

Rows are of `train`; settings are chosen on `dev` and results reported on `test`.

A world gives answered rows (in English alone, or in several languages), parallel text without answers, and questions
with candidate answers. Its rows are read from `CC_TUNING_DATA`, or built from packages; none is passed on here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cctuning.errors import UserError, nearest
from cctuning.languages import language_name
from experiments.real.names import names_of

ENGLISH = "en"
BREAK = "\n"  # ends a prompt: what follows is the answer
SPLITS = ("train", "dev", "test")
GENERAL = 1000  # pairs of a general source a language: keeps the cut vocabulary small
TATOEBA = {
    "ar": "ara", "bn": "ben", "de": "deu", "el": "ell", "es": "spa", "fr": "fra", "hi": "hin", "id": "ind",
    "it": "ita", "ja": "jpn", "ko": "kor", "pt": "por", "ru": "rus", "th": "tha", "tr": "tur", "ur": "urd",
    "vi": "vie", "zh": "zho",
}  # fmt: skip
TICO = {"es": "es-LA", "pt": "pt-BR"} | {
    lang: lang for lang in ("ar", "bn", "fa", "fr", "hi", "id", "ru", "sw", "ta", "ur", "zh")
}
GENERAL_TEXT = {"tatoeba": (TATOEBA, "parallel/tatoeba"), "tico": (TICO, "parallel/tico19")}


class Item(NamedTuple):
    """A question: `answer` is the place of the right one among `candidates`."""

    key: str
    prompt: str
    candidates: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Text:
    """Which rows and which parallel text of a world a run gets.

    Attributes:
        labels: answered items (a language); 0: all of the training split.
        answered: languages that the answered rows are in.
        sentences: items of parallel text a language; 0: all.
        source: `own` (the world's training split), `other` (of it, but for the answered items), `tatoeba`, `tico`,
            `corpus` (all of both), `names` (pairs of names alone, where the world has them).
        without: languages that never have parallel text.
        languages: of the parallel text, English aside; empty: all of the world's.
        order: seed of which items are chosen.
    """

    labels: int = 0
    answered: tuple[str, ...] = (ENGLISH,)
    sentences: int = 0
    source: str = "own"
    without: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    order: int = 0


class World(Protocol):
    """Answered rows, parallel text and questions in several languages."""

    name: str
    languages: tuple[str, ...]  # English first
    first_token: bool  # candidates are compared by their first tokens
    writes: bool  # answers are also written, not only chosen among candidates

    def rows(self, text: Text) -> list[dict[str, str]]:
        """Answered rows: prompt, response, lang."""

    def pairs(self, text: Text) -> list[dict[str, str]]:
        """Parallel text: text, reference (English), lang."""

    def items(self, split: str, lang: str) -> list[Item]:
        """Questions of a split in a language, in the same order in all of them."""

    def texts(self) -> list[str]:
        """Every string that may be tokenised; the vocabulary is cut to these."""


@dataclass
class Sib200:
    """The topic of a sentence: seven labels in English for sentences of all languages.

    Attributes:
        sources: of parallel text, whose tokens the cut vocabulary is to have. cap: questions a split; 0: all.
    """

    languages: tuple[str, ...]
    sources: tuple[str, ...] = ("own",)
    name: str = "sib200"
    cap: int = 0
    first_token: bool = False
    writes: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({row["response"] for row in _read(f"benchmarks/sib200/{ENGLISH}")}))

    def _rows(self, split: str, lang: str) -> list[dict[str, Any]]:
        return sorted((row for row in _read(f"benchmarks/sib200/{lang}") if row["split"] == split), key=_id)

    def rows(self, text: Text) -> list[dict[str, str]]:
        found = []
        for lang in text.answered:
            for row in _chosen(self._rows("train", lang), text.labels, text.order):
                found.append({"prompt": row["prompt"] + BREAK, "response": row["response"], "lang": lang})
        return found

    def pairs(self, text: Text) -> list[dict[str, str]]:
        if text.source in ("tatoeba", "tico", "corpus"):
            return general(text, self.languages)
        answered = {row["id"] for row in _chosen(self._rows("train", ENGLISH), text.labels, text.order)}
        found = []
        for lang in _with_text(text, self.languages):
            rows = self._rows("train", lang)
            if text.source == "other":
                rows = [row for row in rows if row["id"] not in answered]
            for row in _chosen(rows, text.sentences, text.order):
                found.append({"text": row["prompt"], "reference": row["prompt_en"], "lang": lang})
        return found

    def items(self, split: str, lang: str) -> list[Item]:
        labels = self.labels
        return [
            Item(str(row["id"]), row["prompt"] + BREAK, labels, labels.index(row["response"]))
            for row in self._rows(split, lang)[: self.cap or None]
        ]

    def texts(self) -> list[str]:
        found = list(self.labels)
        for lang in self.languages:
            for split in SPLITS:
                for row in self._rows(split, lang):
                    found += [row["prompt"], row["prompt"] + BREAK, row["prompt"] + BREAK + row["response"]]
        pairs = [pair for source in self.sources for pair in self.pairs(Text(source=source))]
        return found + texts_of(pairs)


@dataclass
class Bmlama:
    """Facts with ten candidates; answered in the question's language, or in English (`answers="en"`)."""

    languages: tuple[str, ...]
    answers: str = "own"
    name: str = "bmlama"
    first_token: bool = True
    writes: bool = True

    def rows_of(self, split: str, lang: str) -> list[dict[str, Any]]:
        """The records of a split, in the same order in all languages."""
        return sorted((row for row in _read(f"benchmarks/bmlama17/{lang}") if row["split"] == split), key=_id)

    def _english(self) -> dict[int, dict[str, Any]]:
        return {row["id"]: row for row in _read(f"benchmarks/bmlama17/{ENGLISH}")}

    def _response(self, row: dict[str, Any]) -> str:
        return row.get("response_en", row["response"]) if self.answers == ENGLISH else row["response"]

    def rows(self, text: Text) -> list[dict[str, str]]:
        return [
            {"prompt": _blank(row["prompt"]), "response": self._response(row), "lang": lang}
            for lang in text.answered
            for row in _chosen(self.rows_of("train", lang), text.labels, text.order)
        ]

    def pairs(self, text: Text) -> list[dict[str, str]]:
        if text.source in ("tatoeba", "tico"):
            return general(text, self.languages)
        splits = ("train",) if text.source == "own" else SPLITS
        found = []
        for lang in _with_text(text, self.languages):
            rows = [row for split in splits for row in self.rows_of(split, lang)]
            if text.source == "own":
                pairs = [(_blank(row["prompt"]).strip(), _blank(row["prompt_en"]).strip()) for row in rows]
            else:
                pairs = names_of(rows)
            for text_, reference in _chosen(pairs, text.sentences, text.order):
                found.append({"text": text_, "reference": reference, "lang": lang})
        return found

    def items(self, split: str, lang: str) -> list[Item]:
        english = self._english() if self.answers == ENGLISH else {}
        found = []
        for row in self.rows_of(split, lang):
            given = english.get(row["id"], row)
            candidates = tuple(given["candidates"])
            right = candidates.index(given["response"])
            found.append(Item(str(row["id"]), _blank(row["prompt"]), candidates, right))
        return found

    def texts(self) -> list[str]:
        found = []
        for lang in self.languages:
            for split in SPLITS:
                for item in self.items(split, lang):
                    found += [item.prompt, item.prompt.strip(), *item.candidates]
                    found += [item.prompt + candidate for candidate in item.candidates]
        pairs = [pair for source in ("own", "names") for pair in self.pairs(Text(source=source))]
        return found + texts_of(pairs)


def _blank(prompt: str) -> str:
    return prompt.replace("<mask>", "___") + BREAK


def general(text: Text, languages: Sequence[str]) -> list[dict[str, str]]:
    """Return pairs of Tatoeba, of TICO-19 or of both (`corpus`) in the languages that they have."""
    sources = ("tatoeba", "tico") if text.source == "corpus" else (text.source,)
    found = []
    for lang in _with_text(text, languages):
        rows = []
        for source in sources:
            files, folder = GENERAL_TEXT[source]
            if lang in files:
                rows += _read(f"{folder}/{files[lang]}")[: None if text.source == "corpus" else GENERAL]
        for row in _chosen(rows, text.sentences, text.order):
            found.append({"text": row["text"], "reference": row["text_en"], "lang": lang})
    return found


def texts_of(pairs: Sequence[dict[str, str]]) -> list[str]:
    """Return every form in which a recipe may use parallel text."""
    found = []
    for pair in pairs:
        for text in (pair["text"], pair["reference"]):
            found += [text, text + BREAK, *halves(text)]
        found += [translation(pair), " " + pair["reference"], translation(pair) + " " + pair["reference"]]
    return found


def translation(pair: dict[str, str]) -> str:
    """Return the prompt that asks for a text's English translation."""
    return f"{pair['text']}{BREAK}English:"


def translation_from(pair: dict[str, str]) -> str:
    """Return the prompt that asks for an English text's translation, with tokens of `texts_of` and language names."""
    return f"{pair['reference']}{BREAK}{language_name(pair['lang'])}:{BREAK}"


def halves(text: str) -> tuple[str, str]:
    """Split a text after its first word (or its first character, if it has no spaces)."""
    first = text.split(" ")[0] if " " in text else text[:1]
    return first, text[len(first) :]


def _with_text(text: Text, languages: Sequence[str]) -> list[str]:
    asked = text.languages or tuple(languages)
    return [lang for lang in asked if lang != ENGLISH and lang not in text.without]


def _chosen(rows: Sequence[Any], count: int, order: int) -> list[Any]:
    """Choose `count` rows (0: all), the same items in every language."""
    places = list(range(len(rows)))
    random.Random(f"order {order}").shuffle(places)
    return [rows[place] for place in (places[:count] if count else places)]


def _id(row: dict[str, Any]) -> str:
    return str(row["id"]).zfill(8)


def data_folder() -> Path:
    """Return the directory of the data.

    Raises:
        UserError: CC_TUNING_DATA is not set, or names no directory.
    """
    told = os.environ.get("CC_TUNING_DATA")
    if not told:
        raise UserError("CC_TUNING_DATA is not set: it names the folder that holds benchmarks/ and parallel/.")
    folder = Path(told).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"CC_TUNING_DATA: {folder} is not a folder; expected one that holds benchmarks/ and parallel/."
        )
    return folder


def _read(name: str) -> list[dict[str, Any]]:
    path = data_folder() / f"{name}.jsonl.gz"
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.jsonl.gz")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file.{nearest(path.name, beside)} CC_TUNING_DATA names its folder.")
    return _lines(path, path.stat().st_mtime_ns)


@cache
def _lines(path: Path, changed: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def version_of(world: World) -> str:
    """Return a short hash of all strings of a world."""
    digest = hashlib.sha256()
    for text in world.texts():
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
