"""Where the router sends prompts whose language nobody names, on real texts.

    CC_TUNING_DATA=DIR python bench/routing.py

A router of sw, th, bn, ar and tr; the first prompts of each file of `sft/gsm8k_questions`, `parallel/tatoeba` and
`parallel/tico19` in that directory, and their English sides. Prints a table and writes bench/results/routing.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cctuning.serving.routing import Router
from measuring import machine, versions

LANGUAGES = ["sw", "th", "bn", "ar", "tr"]
SETS = {
    "sft/gsm8k_questions": ("prompt", "prompt_en", 500),
    "parallel/tatoeba": ("text", "text_en", 1000),
    "parallel/tico19": ("text", "text_en", 1000),
}


def rows(path: Path, count: int) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, islice(file, count))


def main() -> None:
    """Route, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", default="bench/results/routing.json")
    args = parser.parse_args()
    if "CC_TUNING_DATA" not in os.environ:
        parser.error("CC_TUNING_DATA: not set; name the directory that holds these sets.")
    router = Router("en", base="base", adapter="adapter", languages=LANGUAGES)
    router.is_reference("the models are loaded with the first prompt")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    slowest = 0.0
    print(
        "| set | language | prompts | sent to the base | of these, in English in the data | English sent to the base |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (own, english, count) in SETS.items():
        for path in sorted((Path(os.environ["CC_TUNING_DATA"]) / name).glob("*.jsonl.gz")):
            pairs = [(row[own], row[english]) for row in rows(path, count) if row.get(own) and row.get(english)]
            begun = time.process_time()
            sent = [router.is_reference(text) for text, _ in pairs]
            slowest = max(slowest, (time.process_time() - begun) / len(pairs))
            entry = {
                "prompts": len(pairs),
                "to_base": sum(sent),
                "equal_to_english": sum(one and text == other for one, (text, other) in zip(sent, pairs, strict=True)),
                "english_to_base": sum(router.is_reference(other) for _, other in pairs),
            }
            language = path.name.split(".")[0]
            found.setdefault(name, {})[language] = entry
            shares = [f"{100 * entry[key] / len(pairs):.1f} %" for key in ("to_base", "english_to_base")]
            print(
                f"| {name} | {language} | {len(pairs)} | {shares[0]} | {entry['equal_to_english']} | {shares[1]} |",
                flush=True,
            )
    record = {
        "command": "python bench/routing.py",
        "languages": LANGUAGES,
        "sets": found,
        "slowest_mean_ms": round(1000 * slowest, 2),
        "machine": machine(),
        "versions": versions(),
    }
    print(f"the slowest set's mean: {record['slowest_mean_ms']} ms of CPU a prompt")
    Path(args.result).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
