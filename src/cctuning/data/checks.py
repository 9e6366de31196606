"""Warn about rows that are valid one by one but would train without a connection: wrong languages, wrong sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cctuning.data.schema import CHUNK
from cctuning.data.text import normalise, tokens
from cctuning.errors import UserError
from cctuning.extras import available
from cctuning.identify import between, confidence, has_model, prose, scripts_apart
from cctuning.languages import language_name

SAMPLE = 64  # pairs of a language that are identified
WORDS = 5  # fewest words without digits of a text whose language lingua identifies: names confuse it
WRONG = 0.2  # likelihood of its own language below which a text of rows is in the other side's
CHUNKS = 4  # samples of texts, each of which has to be in another language than its label
CLEARLY = 0.05  # confidence in the label below which a sample is in another
FEW = 4  # pairs of a language below which nothing is said of its sides
SURELY = 0.1  # as WRONG, for pairs: an error, so surer than a warning
SHARE = 0.2  # of the sampled rows that makes a warning: names and formulas mislead lingua


def warnings_of(table: pa.Table, language: str) -> list[str]:
    """Warnings about rows that are to train a connection to `language`.

    Args:
        table: columns `prompt` and `reference` (messages, or null), `lang`, `origin`.
    """
    name, rows = language_name(language), table.num_rows
    foreign = table.filter(pc.not_equal(table["lang"], language))
    if not foreign.num_rows:
        return [
            f"all {rows} rows are labelled {language} ({name}), the reference language, so each is its own parallel "
            "and nothing is aligned; if the rows are in another language, correct their lang."
        ]
    same = [origin for origin, prompt, reference in _texts(foreign) if reference and _equal(prompt, reference)]
    notes = [
        f"{len(same)} of {foreign.num_rows} rows outside {name} have their own prompt as the parallel (the first: "
        f"{origin}): nothing is aligned by such a row; give the prompt in {name}."
        for origin in same[:1]
    ]
    found: dict[str, list[str]] = {}
    unchecked = []
    for lang in pc.unique(foreign["lang"]).to_pylist():
        if not identifiable(lang, language):
            unchecked.append(language_name(lang))
            continue
        own = foreign.filter(pc.equal(foreign["lang"], lang))
        places = np.linspace(0, own.num_rows - 1, min(SAMPLE, own.num_rows)).round().astype(int)
        read, problems = wrong_sides([texts for _, *texts in _texts(own.take(places))], lang, language)
        elsewhere = other_language([text for _, text, _ in _texts(own.take(places))], lang, language)
        if elsewhere is not None and not problems:
            notes.append(
                f"prompts labelled {language_name(lang)} are in {language_name(elsewhere)}: correct their lang."
            )
        for problem, count in problems.items():
            if count > SHARE * read:
                found.setdefault(problem, []).append(f"{language_name(lang)} ({count} of {read})")
    if unchecked:
        notes.append(
            f"whether prompts and parallels are in their languages was not checked for {', '.join(unchecked)}: that "
            "needs lingua, which is not installed: pip install 'cc-tuning[langid]'."
        )
    told = {
        "swapped": f"prompts are in {name} and parallels in the row's language: they seem to be swapped",
        "text": f"prompts are in {name}, not in the row's language: its lang is wrong, or they were not translated",
        "reference": f"parallels are in the row's language, not in {name}: give the prompts in {name}",
    }
    return notes + [f"{told[one]}; of rows sampled in {', '.join(found[one])}." for one in told if one in found]


def identifiable(lang: str, language: str) -> bool:
    """Whether texts in two languages can be told apart here: by script, or by lingua where it is installed."""
    return scripts_apart(lang, language) or available("lingua")


def wrong_sides(
    pairs: Iterable[Iterable[str]], lang: str, language: str, wrong: float = WRONG
) -> tuple[int, Counter[str]]:
    """How many (text, reference) pairs could be identified, and how many of those show each problem.

    A problem is `swapped`, `text` (it is not in `lang`) or `reference` (it is not in `language`): its likelihood is
    below `wrong`.
    """
    read, found = 0, Counter[str]()
    least = 1 if scripts_apart(lang, language) else WORDS
    for text, reference in pairs:
        if _equal(text, reference) or min(map(_words, (text, reference))) < least:
            continue
        own, other = between(text, lang, language), between(reference, language, lang)
        if own is None or other is None:
            continue
        read += 1
        if own < wrong or other < wrong:
            found["swapped" if own < wrong and other < wrong else "text" if own < wrong else "reference"] += 1
    return read, found


def other_language(texts: Iterable[str], lang: str, language: str) -> str | None:
    """The language that texts labelled `lang` are in, where all of `CHUNKS` samples are clearly in another.

    Args:
        texts: those of fewer than `WORDS` words are left out: names mislead.
        language: of the texts beside them.

    Returns:
        None also where it cannot be told: too few texts, no lingua, or no model of `lang` in it.
    """
    long = [text for text in texts if _words(text) >= WORDS]
    if len(long) < CHUNKS or not available("lingua") or not has_model(lang):
        return None
    found = [confidence(prose(" ".join(long[start::CHUNKS])), lang, language) for start in range(CHUNKS)]
    return found[0][1] if all(sure < CLEARLY for sure, _ in found) and len({near for _, near in found}) == 1 else None


def check_sides(pairs: Sequence[tuple[str, str]], lang: str, language: str, where: str) -> list[str]:
    """Raise `UserError` where the sides of (text, reference) pairs are not in `lang` and `language`.

    Returns:
        A note where some are not.
    """
    if not identifiable(lang, language):
        return []
    notes = []
    read, problems = wrong_sides(pairs, lang, language, SURELY)
    for what, times in problems.most_common(1):
        if FEW <= times > SHARE * read:
            notes.append(
                f"{where}: in {times} of {read} pairs checked ({lang}) "
                + ("the sides are swapped" if what == "swapped" else f"the {what} is in another language")
                + "; cctuning pair finds such pairs."
            )
        if times < FEW or times <= read / 2:
            continue
        if what == "swapped":
            raise UserError(f"{where}: the sides are swapped: the text is in {language}, the reference in {lang}.")
        raise UserError(
            f"{where}: in {times} of {read} pairs checked the {what} is not in "
            f"{lang if what == 'text' else language}; check lang:, and that the sides are in two languages."
        )
    for side, code, other in ((0, lang, language), (1, language, lang)):
        found = other_language([pair[side] for pair in pairs], code, other)
        if found is not None:
            what = "text" if side == 0 else "reference"
            raise UserError(
                f"{where}: the {what} is in {language_name(found)}, not in {language_name(code)}; correct "
                f"{'lang:' if side == 0 else 'reference_language'}, or give the source the right columns."
            )
    return notes


def _words(text: str) -> int:
    return sum(not any(map(str.isdecimal, word)) for word in tokens(text))


def _texts(table: pa.Table) -> Iterator[tuple[str, str, str]]:
    """Origin, prompt and reference of each row as text: the last turn of messages, empty for none."""
    for batch in table.select(["origin", "prompt", "reference"]).to_batches(CHUNK):
        for row in batch.to_pylist():
            prompt, reference = (row[part][-1]["content"] if row[part] else "" for part in ("prompt", "reference"))
            yield row["origin"], prompt, reference


def _equal(one: str, other: str) -> bool:
    return normalise(one) == normalise(other)
