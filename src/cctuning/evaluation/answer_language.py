"""Measure which language a model answered in: shares of answers and of their lines in the language of the question.

Languages are identified by lingua and by script (`cctuning.identify`). Texts with too few letters are not counted, and
languages that are written nearly alike count as one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from cctuning.languages import UNKNOWN, is_code, language_name

LETTERS = 20  # needed to tell languages of one script apart
FEW_LETTERS = 4  # needed to tell scripts apart
HEADER = ["task", "asked in", "answers in it, %", "lines in it, %", "other answers in"]


def language_of(text: str, asked: str, reference: str) -> tuple[bool, str] | None:
    """Whether a text is in the language `asked` and not in `reference` or another one, and its most likely language;
    None if it is too short."""
    from cctuning.identify import confidence, expected_scripts, prose, scripts  # needs lingua

    text = prose(text)
    found = scripts(text)
    own, other = set(expected_scripts(asked)), set(expected_scripts(reference))
    if own and found.total() >= FEW_LETTERS and sum(found[name] for name in own) < found.total() / 2:
        in_reference = found[next(iter(other), "")] >= found.total() / 2
        return False, reference if in_reference else UNKNOWN  # another script
    if found.total() < LETTERS:
        return (True, asked) if own and not own & other and found.total() >= FEW_LETTERS else None
    sure, nearest = confidence(text, asked, reference)
    return sure >= 0.5, asked if sure >= 0.5 else nearest


def answered_in(samples: list[dict[str, Any]], asked: str, reference: str) -> dict[str, Any] | None:
    """The languages of a task's generated answers; None for a task without, in an unknown language, or whose right
    answers are themselves in another language, such as labels in English.

    Returns:
        `answers` and `lines`: shares in the language asked, in [0, 1], None if none could be identified. `judged` and
        `judged_lines`: how many could. `found`: counts of the other languages.
    """
    written = [str(one["response"]["said"]) for one in samples if isinstance(one["response"], dict)]
    if not written or not is_code(asked) or asked == UNKNOWN:
        return None
    targets = [text for one in samples for text in _texts(one.get("target"))]
    wanted = [found for text in targets if (found := language_of(text, asked, reference)) is not None]
    if wanted and sum(right for right, _ in wanted) < len(wanted) / 2:
        return None
    answers = [found for text in written if (found := language_of(text, asked, reference)) is not None]
    texts = [line for text in written for line in text.splitlines()]
    lines = [found for line in texts if (found := language_of(line, asked, reference)) is not None]
    return {
        "answers": _share(answers),
        "judged": len(answers),
        "lines": _share(lines),
        "judged_lines": len(lines),
        "found": dict(Counter(code for right, code in answers if not right).most_common()),
    }


def _texts(target: Any) -> list[str]:
    return [target] if isinstance(target, str) else [text for text in target or () if isinstance(text, str)]


def _share(found: list[tuple[bool, str]]) -> float | None:
    return sum(right for right, _ in found) / len(found) if found else None


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """Rows under `HEADER`, one per task whose answers could be identified."""
    body = []
    for name, task in record["tasks"].items():
        found = task.get("answered_in") or {}
        share = found.get("answers")
        if share is None:
            continue
        others = ", ".join(f"{language_name(code)} {count}" for code, count in found["found"].items())
        error = math.sqrt(share * (1 - share) / found["judged"])
        answers = f"{100 * share:.1f} ± {100 * error:.1f} ({found['judged']})"
        lines = f"{100 * found['lines']:.1f} ({found['judged_lines']})" if found["lines"] is not None else "-"
        body.append([name, language_name(task["language"]), answers, lines, others or "-"])
    return body


def compare_shares(shares: dict[str, list[dict[str, Any] | None]], task: str, language: str) -> str | None:
    """A note on the answers of several systems, each with the shares of its seeds; None if no answers could be
    identified, or if all were in the language of the question."""
    means = {}
    for name, seeds in shares.items():
        values = [one["answers"] for one in seeds if one is not None and one["answers"] is not None]
        if not values:
            return None
        means[name] = sum(values) / len(values)
    if all(mean == 1 for mean in means.values()):
        return None
    told = ", ".join(f"{name} {100 * mean:.0f} %" for name, mean in means.items())
    return f"{task}: answers in {language_name(language)}: {told}."
