"""A world of real text: sentences of TICO-19, and which of its documents each was taken from.

A base reads every sentence with its document's name in English. Of another language it reads sentences and parallel
sentences (TICO-19's own, but for those that it will be asked about, and Tatoeba's) and no document's name: what
belongs to which document is known to it in English alone. The answers are names of documents, the same in every
language; none is in its prompt.

The rows are real and not ours to pass on: `CC_TUNING_DATA` names the directory that holds

    parallel/tico19/{ar,es-LA,fr,hi,id,ru,sw,zh}.jsonl.gz          id (DOCUMENT:NUMBER), text, text_en
    parallel/tatoeba/{ara,fra,hin,ind,rus,spa,zho}.jsonl.gz        text, text_en
    benchmarks/                                                    as `cctuning evaluate --data` reads it
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cctuning.demo.worlds import ENGLISH, Item
from cctuning.errors import UserError

DATA = "CC_TUNING_DATA"
TOLD = 8  # times that a sentence is among English's lines with its document, for once that it is without
SPLITS = {"sft": 400, "dev": 300, "test": 600}  # sentences; the rest is `text`
LONGEST = 400  # characters of a sentence, in any language
ASKED = " Source:"


@dataclass(frozen=True)
class Tongue:
    """A language, its tier by how much parallel text there is, and its files of TICO-19 and Tatoeba."""

    code: str
    name: str
    tier: str
    tico: str = ""
    tatoeba: str = ""


TONGUES = {
    tongue.code: tongue
    for tongue in (
        Tongue("en", "English", "reference"),
        Tongue("es", "Spanish", "high", "es-LA", "spa"),
        Tongue("fr", "French", "high", "fr", "fra"),
        Tongue("ru", "Russian", "high", "ru", "rus"),
        Tongue("zh", "Chinese", "high", "zh", "zho"),
        Tongue("ar", "Arabic", "high", "ar", "ara"),
        Tongue("hi", "Hindi", "mid", "hi", "hin"),
        Tongue("id", "Indonesian", "mid", "id", "ind"),
        Tongue("sw", "Swahili", "low", "sw"),
    )
}


class TicoWorld:
    """The sentences, their splits and the text beside them.

    Args:
        folder: where the rows are. seed: of the splits. sizes: split -> sentences.

    Raises:
        UserError: a file that is missing or damaged, or too few sentences that every language has.
    """

    kind = "tico"

    def __init__(self, folder: Path, seed: int, sizes: dict[str, int] | None = None) -> None:
        self.folder, self.seed, self.languages = folder, seed, TONGUES
        read = {lang: _by_id(folder / f"parallel/tico19/{TONGUES[lang].tico}.jsonl.gz") for lang in _others()}
        kept = [key for key in next(iter(read.values())) if _fits([own.get(key) for own in read.values()])]
        said = {lang: {key: own[key]["text"] for key in kept} for lang, own in read.items()}
        said[ENGLISH] = {key: read["es"][key]["text_en"] for key in kept}
        # TICO-19's French repeats translations under unrelated English: a base would read one and be asked the other.
        times = {lang: Counter([*own.values(), *self._short(lang)]) for lang, own in said.items()}
        kept = [key for key in kept if all(times[lang][own[key]] == 1 for lang, own in said.items())]
        self._documents = [key.rpartition(":")[0] for key in kept]
        self._sentences = {lang: [own[key] for key in kept] for lang, own in said.items()}
        self.answer_tokens = max(map(len, self._documents), default=0)  # a token a character at most
        order = list(range(len(kept)))
        random.Random(f"tico {seed}").shuffle(order)
        self._splits, start = dict[str, list[int]](), 0
        for split, size in (sizes or SPLITS).items():
            self._splits[split] = order[start : start + size]
            start += size
        # A base has read what is left without its document: it will do for rows without an answer, too.
        self._splits |= dict.fromkeys(("text", "free"), order[start:])
        if not self._splits["text"]:
            raise UserError(f"{folder}: {len(kept)} sentences are there in every language; expected over {start}.")
        for lang in _others():
            lines = set(self.text(lang, 1.0, seed))
            asked = {self._sentences[lang][row] for split in ("dev", "test") for row in self._splits[split]}
            assert not asked & lines, f"{lang}: the base reads what dev or test asks"

    # -- what a base reads -------------------------------------------------------------------------------------------

    def vocabulary(self, lang: str) -> list[str]:
        """None: the base cuts words itself."""
        return []

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """None are known."""
        return {}

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """English: every sentence with its document, and Tatoeba's. Else sentences of `text` (a share) and `sft`."""
        if lang != ENGLISH:
            return [self._sentences[lang][row] for row in self._read(lang, share, seed)] + self._short(lang)
        lines = list(dict.fromkeys(row["text_en"] for other in _others() for row in self._tatoeba(other)))
        told = [f"{self._prompt(ENGLISH, row)} {document}" for row, document in enumerate(self._documents)]
        return lines + self._sentences[ENGLISH] + told * TOLD

    def parallel_text(self, lang: str, share: float, seed: int) -> list[str]:
        """The same in both languages, either first."""
        own, english = self._sentences[lang], self._sentences[ENGLISH]
        pairs = [(english[row], own[row]) for row in self._read(lang, share, seed)]
        pairs += [(row["text_en"], row["text"]) for row in self._tatoeba(lang)]
        return [f"{one} = {two}" for pair in pairs for one, two in (pair, pair[::-1])]

    def switched_text(self, lang: str, share: float, seed: int, versions: int) -> list[str]:
        """None: there is no word list to switch by."""
        return []

    def switched_list(self, lang: str, seed: int, versions: int) -> list[str]:
        """None, likewise."""
        return []

    def _read(self, lang: str, share: float, seed: int) -> list[int]:
        readable = list(self._splits["text"])
        random.Random(f"{seed} {lang}").shuffle(readable)
        return readable[: round(share * len(self._documents))] + self._splits["sft"]

    def _short(self, lang: str) -> list[str]:
        """Tatoeba's sentences; English, which reads everything, has none of its own."""
        return [row["text"] for row in self._tatoeba(lang)]

    def _tatoeba(self, lang: str) -> list[dict[str, Any]]:
        name = TONGUES[lang].tatoeba
        return _rows(self.folder / f"parallel/tatoeba/{name}.jsonl.gz") if name else []

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _prompt(self, lang: str, row: int) -> str:
        return self._sentences[lang][row] + ASKED

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language."""
        return [
            Item(
                key=str(row),
                task="document",
                lang=lang,
                prompt=self._prompt(lang, row),
                prompt_en=self._prompt(ENGLISH, row),
                answer=self._documents[row],
            )
            for row in self._splits[split]
        ]

    def row(self, item: Item) -> dict[str, Any]:
        """A training row of it."""
        return {"prompt": item.prompt, "response": " " + item.answer, "lang": item.lang, "prompt_en": item.prompt_en}


def build_world(seed: int) -> TicoWorld:
    """The world over the directory that `CC_TUNING_DATA` names."""
    return TicoWorld(data_folder(), seed)


def data_folder() -> Path:
    """What `CC_TUNING_DATA` names; `UserError` where it is not set."""
    folder = os.environ.get(DATA)
    if not folder:
        raise UserError(f"{DATA} is not set: the setup `tico` reads real rows; set it to their directory.")
    return Path(folder)


def _others() -> list[str]:
    return [lang for lang in TONGUES if lang != ENGLISH]


def _fits(rows: list[dict[str, Any] | None]) -> bool:
    """Whether every language has the sentence, and none at length."""
    return all(row is not None and max(len(row["text"]), len(row["text_en"])) <= LONGEST for row in rows)


def _by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in _rows(path)}


@cache
def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {DATA} should name a directory that holds it.") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected gzip JSON lines.") from error
