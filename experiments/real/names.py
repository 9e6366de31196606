"""Extract pairs of names from parallel questions: what remains of a question without its pattern."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


def names_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the distinct (name, its English) pairs of parallel questions."""
    return list(dict.fromkeys(names_by_question(rows).values()))


def names_by_question(rows: Sequence[dict[str, Any]]) -> dict[int, tuple[str, str]]:
    """Return place of a question -> (name, its English): what it does not share with others of its pattern.

    A question's pattern is the longest prefix and suffix that it shares with its neighbours of the same English frame;
    what is left between them is the subject's name. Questions whose names cannot be told apart are left out.
    """
    frames: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    patterns = _frames(tuple(row["prompt_en"] for row in rows))
    for place, row in enumerate(rows):
        said, english = row["prompt"], row["prompt_en"]
        for start, end in patterns:
            if english.startswith(start) and english.endswith(end) and len(english) > len(start) + len(end):
                frames.setdefault((start, end), []).append((place, said, english))
                break
    found: dict[int, tuple[str, str]] = {}
    for (start, end), pairs in frames.items():
        if len(pairs) < 3:
            continue
        own_start, own_end = (
            _common_start([said for _, said, _ in pairs]),
            _common_end([said for _, said, _ in pairs]),
        )
        for place, said, english in pairs:
            name = said[len(own_start) : len(said) - len(own_end) if own_end else None].strip()
            known = english[len(start) : len(english) - len(end) if end else None].strip()
            if name and known and "<mask>" not in name + known:
                found[place] = name, known
    return found


@cache
def _frames(prompts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(start, end) of the English patterns, longest first: what at least three questions have around their name."""
    counts: dict[tuple[str, str], int] = {}
    for prompt in prompts:
        words = prompt.split(" ")
        mask = next((i for i, word in enumerate(words) if "<mask>" in word), None)
        if mask is None:
            continue
        for cut in range(1, min(6, mask) + 1):  # the name stands before the blank: "NAME <frame> <mask> ."
            counts[("", " " + " ".join(words[cut:]))] = counts.get(("", " " + " ".join(words[cut:])), 0) + 1
        for cut in range(mask + 1, len(words)):  # or after it, to the end
            key = (" ".join(words[:cut]) + " ", "")
            counts[key] = counts.get(key, 0) + 1
    return tuple(sorted((key for key, count in counts.items() if count >= 3), key=lambda key: -len("".join(key))))


def _common_end(texts: Sequence[str]) -> str:
    return _common_start([text[::-1] for text in texts])[::-1]


def _common_start(texts: Sequence[str]) -> str:
    """Return the longest common prefix."""
    first, last = min(texts), max(texts)
    same = next((i for i, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), None)
    return first[: min(len(first), len(last)) if same is None else same]
