"""Measure the time that translation takes besides the engine: splitting, masking, caching, reassembling.

    python bench/translation.py [--rows 100 1000 10000] [--output bench/results/translation.json]

First with an engine that answers at once; then the same rows again, all from the cache; then with a chat server on
loopback that answers at once, for the time of a request. Rows are the prompts of the
Chinese Alpaca rows of `CC_TUNING_DATA` where there are any, and made-up ones with a link and code in each. Rows and
characters are given per second of this process's CPU time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cctuning.pairing.translation import open_translator
from tests.pairing.translation.server import Server

WORDS = [
    "mji",
    "mkuu",
    "wa",
    "Kenya",
    "andika",
    "shairi",
    "kuhusu",
    "bahari",
    "eleza",
    "tofauti",
    "kati",
    "ya",
    "samaki",
]


def instant(texts: list[str], source: str, target: str) -> list[str]:
    """The engine that costs nothing."""
    return [f"T {text}" for text in texts]


def real(count: int) -> list[str]:
    """Distinct Chinese prompts; none where there are no data."""
    path = Path(os.environ.get("CC_TUNING_DATA") or "", "sft/alpaca/zh.jsonl.gz")
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    return [f"{prompts[n % len(prompts)]} {n}" for n in range(count)]


def made_up(count: int) -> list[str]:
    """Distinct Swahili-like prompts."""
    draw = random.Random(0)
    made = (" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) for _ in range(count))
    return [f"{text}. Tazama https://a.example/{n} na `x = {n}`." for n, text in enumerate(made)]


def timed(options: dict[str, Any], cache: Path, texts: list[str], source: str) -> dict[str, Any]:
    """Translate the texts once."""
    translator = open_translator(options, cache)
    start, cpu = time.perf_counter(), time.process_time()
    done = list(translator.translate(texts, source, "en"))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    usage = translator.usage()
    translator.close()
    return {
        "rows": len(texts),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "rows_per_cpu_second": round(len(texts) / cpu),
        "characters_per_cpu_second": round(usage["characters"] / cpu),
        "segments": usage["segments"],
        "cache_hits": usage["cache_hits"],
        "problems": sum(one.text is None for one in done),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Run all measurements and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--requests", type=int, default=500, help="rows for the loopback server")
    parser.add_argument("--output", default="bench/results/translation.json")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []

    def measure(engine: str, options: dict[str, Any], cache: Path, texts: list[str], source: str) -> None:
        for state in ("cold", "warm"):
            settings = {"engine": engine, "split": options.get("split", "long"), "lang": source, "cache": state}
            results.append({**settings, **timed(options, cache, texts, source)})
            print(results[-1], flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for split in ("long", "sentences"):
            instant_engine = {"engine": "function", "function": "bench.translation:instant", "split": split}
            for source, make in (("zh", real), ("sw", made_up)):
                for count in sorted(args.rows):
                    if texts := make(count):
                        measure("instant", instant_engine, Path(scratch, f"{split}-{source}-{count}"), texts, source)
        with Server() as server:
            chat = {"engine": "chat", "base_url": server.url, "model": "tiny"}
            measure("chat, loopback", chat, Path(scratch, "chat"), made_up(args.requests), "sw")
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()}
    machine["load_average"] = [round(one, 1) for one in os.getloadavg()]
    record = {"machine": machine, "cc-tuning": version("cc-tuning"), "results": results}
    Path(args.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
