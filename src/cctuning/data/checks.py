"""Warn about rows that are valid one by one but would train without a connection: wrong languages, wrong sides.

Languages are identified by lingua on a sample of each language's rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.schema import CHUNK
from cctuning.data.text import normalise
from cctuning.extras import available
from cctuning.identify import between, scripts, scripts_apart
from cctuning.languages import language_name

SAMPLE = 64  # rows of a language that lingua reads
LETTERS = 20  # fewest letters of a text whose language is identified
SURE = 0.8
SHARE = 0.2  # of the sampled rows that makes a warning: names and formulas mislead lingua


def warnings_of(table: pa.Table, language: str) -> list[str]:
    """Warnings about rows that are to train a connection to `language`.

    Args:
        table: columns `prompt` and `reference` (null where there are none, or messages in `prompt_messages` and
            `reference_messages`), `lang`, `origin`.
        language: the reference language, canonical.
    """
    name, rows = language_name(language), table.num_rows
    foreign = table.filter(pc.not_equal(table["lang"], language))
    if not foreign.num_rows:
        return [
            f"all {rows} rows are labelled {language} ({name}), the reference language, so each is its own parallel "
            "and nothing is aligned; if the rows are in another language, correct their lang."
        ]
    same = [row["origin"] for row in _texts(foreign) if row["reference"] and _equal(row)]
    notes = [
        f"{len(same)} of {foreign.num_rows} rows outside {name} have their own prompt as the parallel (the first: "
        f"{origin}): nothing is aligned by such a row; give the prompt in {name}."
        for origin in same[:1]
    ]
    found: dict[str, list[str]] = {}
    unchecked = []
    for lang in pc.unique(foreign["lang"]).to_pylist():
        if not available("lingua") and not scripts_apart(lang, language):
            unchecked.append(language_name(lang))
            continue
        read, signs = _read(foreign.filter(pc.equal(foreign["lang"], lang)), lang, language)
        for sign, count in signs.items():
            if count > SHARE * read:
                found.setdefault(sign, []).append(f"{language_name(lang)} ({count} of {read})")
    if unchecked:
        notes.append(
            f"whether prompts and parallels are in their languages was not checked for {', '.join(unchecked)}: that "
            "needs lingua, which is not installed: pip install 'cc-tuning[langid]'."
        )
    told = {
        "swapped": f"prompts are in {name} and parallels in the row's language: they seem to be swapped",
        "prompt": f"prompts are in {name}, not in the row's language: its lang is wrong, or they were not translated",
        "reference": f"parallels are in the row's language, not in {name}: give the prompts in {name}",
    }
    return notes + [
        f"{what}; of rows sampled in {', '.join(found[sign])}." for sign, what in told.items() if sign in found
    ]


def _texts(table: pa.Table) -> Iterator[dict[str, str]]:
    """`origin`, `prompt` and `reference` of each row as text: the last turn of messages, empty for none."""
    columns = [f"{part}{kind}" for part in ("prompt", "reference") for kind in ("", "_messages")]
    for batch in table.select(["origin", *columns]).to_batches(CHUNK):
        for row in batch.to_pylist():
            text = {"origin": row["origin"]}
            for part in ("prompt", "reference"):
                turns = row[f"{part}_messages"]
                text[part] = (row[part] if turns is None else turns[-1]["content"]) or ""
            yield text


def _equal(row: dict[str, str]) -> bool:
    return normalise(row["prompt"]) == normalise(row["reference"])


def _read(rows: pa.Table, lang: str, language: str) -> tuple[int, dict[str, int]]:
    """How many rows of one language could be identified, and how many of those show each problem."""
    signs = dict.fromkeys(("swapped", "prompt", "reference"), 0)
    read, places = 0, np.linspace(0, rows.num_rows - 1, min(SAMPLE, rows.num_rows)).round().astype(int)
    for row in _texts(rows.take(places)):
        prompt, reference = row["prompt"], row["reference"]
        if _equal(row) or any(scripts(text).total() < LETTERS for text in (prompt, reference)):
            continue
        asked, given = between(prompt, lang, language), between(reference, language, lang)
        if asked is None or given is None:
            continue
        read += 1
        wrong, foreign = asked < 1 - SURE, given < 1 - SURE
        if wrong or foreign:
            signs["swapped" if wrong and foreign else "prompt" if wrong else "reference"] += 1
    return read, signs
