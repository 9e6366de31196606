"""What a reference at inference buys, by what the reference is, on the demo's connected model.

    cctuning demo && python bench/hint.py [--demo demo]

The test questions of each language, greedy, exact match: without a reference (the matrix), with the English parallel,
with three English examples and their answers before it, with those alone, and with another question's parallel. One
model, one seed. Prints a table and writes bench/results/hint.json.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

from cctuning.demo.world import ENGLISH, LANGUAGES, World
from cctuning.model.loading import load
from cctuning.serving.answering import Answerer
from measuring import record, write

SHOTS, SEED = 3, 0


def main() -> None:
    """Ask, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="demo", help="the directory that `cctuning demo` wrote")
    args = parser.parse_args()
    world = World(SEED)
    answerer = Answerer(load(f"{args.demo}/cc"), chat=False, batch_size=128, max_new_tokens=3, seed=SEED)
    examples = [f"{row['prompt']} {row['response']}" for row in world.rows("sft", [ENGLISH])]
    rng = random.Random(SEED)

    def shots() -> str:
        return " ".join(rng.sample(examples, SHOTS))

    ways: dict[str, Callable[[list[dict[str, Any]], int], str | None]] = {
        "none: the matrix": lambda items, place: None,
        "the English parallel": lambda items, place: items[place]["prompt_en"],
        "three English examples, then the parallel": lambda items, place: f"{shots()} {items[place]['prompt_en']}",
        "three English examples with their answers, no parallel": lambda items, place: shots(),
        "the parallel of another question": lambda items, place: items[place - 1]["prompt_en"],
    }
    right, asked = dict.fromkeys(ways, 0), 0
    for lang in LANGUAGES:
        if lang == ENGLISH:
            continue
        items = world.rows("test", [lang])
        asked += len(items)
        for name, way in ways.items():
            given = answerer([item["prompt"] for item in items], [way(items, place) for place in range(len(items))])
            right[name] += sum(answer == item["response"] for answer, item in zip(given, items, strict=True))
    shares = {name: round(100 * count / asked, 1) for name, count in right.items()}
    print("| reference | right, % |\n| --- | --- |")
    for name, share in shares.items():
        print(f"| {name} | {share} |")
    write("hint", record(SEED, questions=asked, right=shares))


if __name__ == "__main__":
    main()
