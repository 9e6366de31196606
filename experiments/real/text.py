"""What is done to parallel text before training: wrong pairs mixed in, bad pairs found, the nearest pairs chosen.

Checks and choice are the commands `cctuning pair` and `cctuning pair select`, as a user runs them; a machine without
their packages reads what they gave elsewhere from the folder CC_TUNING_TEXT.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cctuning.cli import main
from cctuning.files import write_atomically
from experiments.real.worlds import ENGLISH

Pair = dict[str, str]  # text, reference, lang


def mispaired(pairs: Sequence[Pair], rng: random.Random, share: float = 1.0) -> list[Pair]:
    """Return the pairs, a share of each language's with the English of another of them.

    The wrong pairs of a smaller share are among those of a larger one for the same random numbers.
    """
    found: list[Pair] = []
    for lang in dict.fromkeys(pair["lang"] for pair in pairs):
        own = [pair for pair in pairs if pair["lang"] == lang]
        order = list(range(len(own)))
        rng.shuffle(order)
        order = order[: round(share * len(own))]
        turned = {place: order[(number + 1) % len(order)] for number, place in enumerate(order)}
        found += [
            {**pair, "reference": own[turned.get(number, number)]["reference"]} for number, pair in enumerate(own)
        ]
    return found


def checked(pairs: Sequence[Pair], encoder: str | None) -> list[Pair]:
    """Return the pairs that `cctuning pair` keeps, with this encoder or without one."""
    return _command(pairs, ["pair"], ["--encoder", encoder] if encoder else [])


def chosen(pairs: Sequence[Pair], prompts: Sequence[str], count: int, by: str, seed: int) -> list[Pair]:
    """Return `count` pairs per language that `cctuning pair select` chooses.

    Args:
        prompts: English prompts of the task. by: `tfidf`, `random`, or the name of an encoder.
    """
    how = [by] if by in ("tfidf", "random") else ["encoder", "--encoder", by]
    told = ["--count", str(count), "--by", *how, "--seed", str(seed)]
    return _command(pairs, ["pair", "select"], told, prompts)


def translated(pairs: Sequence[Pair], function: str) -> list[Pair]:
    """Replace the English side of each pair with a machine translation of its text.

    Args:
        function: MODULE:NAME of a function that `cctuning pair --translate function` calls.
    """
    found = []
    for lang in dict.fromkeys(pair["lang"] for pair in pairs):
        own = [{"prompt": pair["text"]} for pair in pairs if pair["lang"] == lang]
        found += _command(own, ["pair"], ["--lang", lang, "--translate", "function", f"function={function}"])
    return found


def _command(
    pairs: Sequence[Pair], verb: list[str], options: list[str], near: Sequence[str] | None = None
) -> list[Pair]:
    """The pairs that a command leaves of `pairs`; kept by all that it is given in CC_TUNING_TEXT, if that is set."""
    kept = os.environ.get("CC_TUNING_TEXT")
    if not kept:
        return _run(pairs, verb, options, near)
    content = json.dumps([verb, options, near, list(pairs)], sort_keys=True, ensure_ascii=False)
    place = Path(kept) / f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.json"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(_run(pairs, verb, options, near), ensure_ascii=False))
    return list(json.loads(place.read_text(encoding="utf-8")))


def _run(pairs: Sequence[Pair], verb: list[str], options: list[str], near: Sequence[str] | None) -> list[Pair]:
    with tempfile.TemporaryDirectory(prefix="text-") as folder:
        text, made, task = Path(folder) / "text.jsonl", Path(folder) / "made", Path(folder) / "near.jsonl"
        renamed = ({"text_en" if name == "reference" else name: value for name, value in one.items()} for one in pairs)
        text.write_text("".join(json.dumps(one) + "\n" for one in renamed))
        if near is not None and "random" not in options:
            task.write_text("".join(json.dumps({"prompt": prompt, "lang": ENGLISH}) + "\n" for prompt in near))
            options = [*options, "--near", str(task)]
        status = main([*verb, str(text), "--output", str(made), *options])
        if status:
            raise RuntimeError(f"cctuning {' '.join(verb)} ended with status {status}")
        rows = [json.loads(line) for line in (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {
            "text": row.get("text") or row["prompt"],
            "reference": row.get("text_en") or row["prompt_en"],
            "lang": row["lang"],
        }
        for row in rows
    ]
