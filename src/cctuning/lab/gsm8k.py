"""A world of real text: grade-school questions whose answers a base has read in English alone.

GSM8K's questions in seven languages beside English (a number answers each), and parallel sentences of Tatoeba and
TICO-19. A base reads every question with its answer in English, and of another language its
side of the parallel sentences and the questions of the `text` split: those of `sft`, `dev` and `test` it has met in
English only. What is asked of it is whether a number that it knows of an English question can be had in another
language. It is not asked to reason: nothing of this size does, and base and recipes have the same English answers.

Answers are digits and so the same in every language, as they are in GSM8K itself.

The rows are real and not ours to pass on: `CC_TUNING_DATA` names the directory that holds

    sft/gsm8k_questions/{de,es,fr,ja,ru,sw,zh}.jsonl.gz     prompt, response (a number), prompt_en: matched by the last
    parallel/tatoeba/{deu,fra,jpn,rus,spa,zho}.jsonl.gz     text, text_en
    parallel/tico19/{es-LA,fr,ru,sw,zh}.jsonl.gz            text, text_en
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.lab.worlds import ENGLISH, Item

DATA = "CC_TUNING_DATA"
TOLD = 8  # times that an English question is among English's lines, for once that a sentence is
SPLITS = {"sft": 400, "dev": 300, "test": 600}  # questions; the rest is `text`
NUMBER = re.compile(r"-?[\d.,]{1,7}")
LONGEST = 600  # characters of a question, in any language


@dataclass(frozen=True)
class Tongue:
    """A language, its tier by how much parallel text there is, and the files of that."""

    code: str
    name: str
    tier: str
    sentences: tuple[str, ...] = ()


TONGUES = {
    tongue.code: tongue
    for tongue in (
        Tongue("en", "English", "reference"),
        Tongue("es", "Spanish", "high", ("tatoeba/spa", "tico19/es-LA")),
        Tongue("fr", "French", "high", ("tatoeba/fra", "tico19/fr")),
        Tongue("ru", "Russian", "high", ("tatoeba/rus", "tico19/ru")),
        Tongue("zh", "Chinese", "high", ("tatoeba/zho", "tico19/zh")),
        Tongue("de", "German", "mid", ("tatoeba/deu",)),
        Tongue("ja", "Japanese", "mid", ("tatoeba/jpn",)),
        Tongue("sw", "Swahili", "low", ("tico19/sw",)),
    )
}


class RealWorld:
    """The questions, their splits and the text beside them.

    Args:
        folder: where the rows are. seed: of the splits. sizes: split -> questions.

    Raises:
        UserError: a file that is missing or damaged, or too few questions that every language has.
    """

    kind = "gsm8k"

    def __init__(self, folder: Path, seed: int, sizes: dict[str, int] | None = None) -> None:
        self.folder, self.seed, self.languages = folder, seed, TONGUES
        read = {lang: _read(folder / f"sft/gsm8k_questions/{lang}.jsonl.gz") for lang in _others()}
        asked = {lang: {row["prompt_en"]: row for row in own} for lang, own in read.items()}
        shared = sorted(set.intersection(*map(set, asked.values())))
        kept = [english for english in shared if _fit([own[english] for own in asked.values()])]
        # Language -> questions, the same in each.
        self._prompts = {lang: [own[english]["prompt"] for english in kept] for lang, own in asked.items()}
        self._prompts[ENGLISH] = kept
        self._answers = [asked["es"][english]["response"] for english in kept]
        self.answer_tokens = 1 + max(map(len, self._answers), default=0)  # a space, and a token a digit
        order = list(range(len(kept)))
        random.Random(f"gsm8k {seed}").shuffle(order)
        self._splits, start = dict[str, list[int]](), 0
        for split, size in (sizes or SPLITS).items():
            self._splits[split] = order[start : start + size]
            start += size
        self._splits |= {"text": order[start:], "free": []}
        if not self._splits["text"]:
            raise UserError(f"{folder}: {len(kept)} questions are there in every language; expected over {start}.")

    # -- what a base reads -------------------------------------------------------------------------------------------

    def vocabulary(self, lang: str) -> list[str]:
        """None: the base cuts words itself."""
        return []

    def senses(self) -> dict[str, dict[str, set[str]]]:
        """None are known."""
        return {}

    def text(self, lang: str, share: float, seed: int) -> list[str]:
        """All questions answered and all English sentences; or a language's sentences and a share of `text`."""
        if lang != ENGLISH:
            told = [self._told(lang, row) for row in self._share(lang, share, seed)]
            return told + [row["text"] for row in self._sentences(lang)]
        lines = dict.fromkeys(row["text_en"] for other in _others() for row in self._sentences(other))
        return [*lines] + [self._told(ENGLISH, row) for row in range(len(self._answers))] * TOLD

    def parallel_text(self, lang: str, share: float, seed: int) -> list[str]:
        """Sentences and the same questions in both languages, either first."""
        pairs = [(row["text_en"], row["text"]) for row in self._sentences(lang)]
        pairs += [(self._prompts[ENGLISH][row], self._prompts[lang][row]) for row in self._share(lang, share, seed)]
        return [f"{one} = {two}" for pair in pairs for one, two in (pair, pair[::-1])]

    def switched_text(self, lang: str, share: float, seed: int, versions: int) -> list[str]:
        """None: there is no word list to switch by."""
        return []

    def switched_list(self, lang: str, seed: int, versions: int) -> list[str]:
        """None, likewise."""
        return []

    def _told(self, lang: str, row: int) -> str:
        return f"{self._prompts[lang][row]} {self._answers[row]}"

    def _share(self, lang: str, share: float, seed: int) -> list[int]:
        readable = list(self._splits["text"])
        random.Random(f"{seed} {lang}").shuffle(readable)
        return readable[: round(share * len(self._answers))]

    def _sentences(self, lang: str) -> list[dict[str, Any]]:
        return [row for name in TONGUES[lang].sentences for row in _read(self.folder / f"parallel/{name}.jsonl.gz")]

    # -- what is asked -----------------------------------------------------------------------------------------------

    def items(self, lang: str, split: str) -> list[Item]:
        """The questions of a split in a language."""
        return [
            Item(
                key=str(row),
                task="number",
                lang=lang,
                prompt=self._prompts[lang][row],
                prompt_en=self._prompts[ENGLISH][row],
                answer=self._answers[row],
            )
            for row in self._splits[split]
        ]

    def row(self, item: Item) -> dict[str, Any]:
        """A training row."""
        return {"prompt": item.prompt, "response": " " + item.answer, "lang": item.lang, "prompt_en": item.prompt_en}


def build_world(seed: int) -> RealWorld:
    """The world over the directory that `CC_TUNING_DATA` names."""
    folder = os.environ.get(DATA)
    if not folder:
        raise UserError(f"{DATA} is not set: this setup reads real rows; set it to their directory (lab/gsm8k.py).")
    return RealWorld(Path(folder), seed)


def _others() -> list[str]:
    return [lang for lang in TONGUES if lang != ENGLISH]


def _fit(rows: list[dict[str, Any]]) -> bool:
    """Whether a number answers the question, the same in every language, and it is not overlong in any."""
    answers = {str(row["response"]) for row in rows}
    return (
        len(answers) == 1
        and NUMBER.fullmatch(answers.pop()) is not None
        and all(len(row["prompt"]) <= LONGEST for row in rows)
    )


@cache
def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {DATA} should name a directory that holds it.") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected gzip JSON lines.") from error
