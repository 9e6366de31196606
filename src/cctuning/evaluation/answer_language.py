"""Which language a model answered in: the share of answers, and of their lines, in the language that was asked.

By lingua and by script, as pairing tells languages (`cctuning.identify`). A text with too few letters says nothing and
is not judged; languages that are written nearly alike count as one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from cctuning.identify import confidence, expected_scripts, prose, scripts
from cctuning.languages import UNKNOWN, is_code, language_name

LETTERS = 20  # from which lingua tells languages of one script
FEW_LETTERS = 4  # from which a script is told from another


def language_of(text: str, asked: str, reference: str) -> tuple[bool, str] | None:
    """Whether a text is in the language asked, and the code of the one it is most like; None where it is too short.

    Args:
        asked: the language of the question.
        reference: the language that a model most often falls back to.
    """
    text = prose(text)
    found = scripts(text)
    own, other = set(expected_scripts(asked)), set(expected_scripts(reference))
    if own and found.total() >= FEW_LETTERS and sum(found[name] for name in own) < found.total() / 2:
        foreign = reference if found[next(iter(other), "")] >= found.total() / 2 else "und"
        return False, foreign  # in another script
    if found.total() < LETTERS:
        return (True, asked) if own and not own & other and found.total() >= FEW_LETTERS else None
    sure, nearest = confidence(text, asked, reference)
    return sure >= 0.5, asked if sure >= 0.5 else nearest


def answered_in(samples: list[dict[str, Any]], asked: str, reference: str) -> dict[str, Any] | None:
    """Over the answers of a task: `answers` and `lines`, shares in [0, 1] (None: none could be judged) in the language
    asked, of how many, and `found`, the languages of the others. None for a task that writes no answers."""
    written = [str(one["response"]["said"]) for one in samples if isinstance(one["response"], dict)]
    if not written or not is_code(asked) or asked == UNKNOWN:
        return None
    whole = [told for text in written if (told := language_of(text, asked, reference)) is not None]
    lines = [line for text in written for line in text.splitlines()]
    parts = [told for line in lines if (told := language_of(line, asked, reference)) is not None]
    others = Counter(code for right, code in whole if not right)
    return {
        **{"answers": _share(whole), "judged": len(whole)},
        **{"lines": _share(parts), "judged_lines": len(parts)},
        "found": dict(others.most_common()),
    }


def _share(told: list[tuple[bool, str]]) -> float | None:
    return sum(right for right, _ in told) / len(told) if told else None


def rows(record: dict[str, Any]) -> list[list[str]]:
    """A line a task whose answers could be judged: task, language, answers in it, lines in it, and the others'."""
    body = []
    for name, task in record["tasks"].items():
        found = task.get("answered_in") or {}
        if found.get("answers") is None:
            continue
        others = ", ".join(f"{language_name(code)} {count}" for code, count in found["found"].items())
        share = found["answers"]
        error = math.sqrt(share * (1 - share) / found["judged"])
        cells = [f"{100 * share:.1f} ± {100 * error:.1f} ({found['judged']})"]
        cells += [f"{100 * found['lines']:.1f} ({found['judged_lines']})"] if found["lines"] is not None else ["-"]
        body.append([name, language_name(task["language"]), *cells, others or "-"])
    return body


HEADER = ["task", "asked in", "answers in it, %", "lines in it, %", "other answers in"]


def compared(shares: dict[str, list[dict[str, Any] | None]], task: str, language: str) -> str | None:
    """A note on the answers of several systems, each with its seeds' shares; None where none could be judged, or all
    were in the language asked."""
    told, whole = [], True
    for name, seeds in shares.items():
        values = [one["answers"] for one in seeds if one is not None and one["answers"] is not None]
        if not values:
            return None
        mean = sum(values) / len(values)
        whole = whole and mean == 1
        told.append(f"{name} {100 * mean:.0f} %")
    return None if whole else f"{task}: answers in {language_name(language)}: {', '.join(told)}."
