"""Rows in a few languages, and short ways to write files, pair them and read what came of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from cctuning.pairing.options import Checks, PairOptions, PairSource
from cctuning.pairing.run import pair

ENGLISH = [
    {"id": 1, "prompt": "What is the capital city of Kenya?", "response": "The capital is Nairobi."},
    {"id": 2, "prompt": "Name three fruits that grow in warm countries.", "response": "Mango, papaya and banana."},
    {"id": 3, "prompt": "How many days does the month of April have?", "response": "It has thirty days."},
    {"id": 4, "prompt": "Write a short letter to your grandmother.", "response": "Dear grandmother, I miss you."},
]
SWAHILI = [
    {"id": 1, "lang": "sw", "prompt": "Mji mkuu wa nchi ya Kenya ni upi?", "response": "Mji mkuu ni Nairobi."},
    {"id": 2, "lang": "sw", "prompt": "Taja matunda matatu yanayokua katika nchi zenye joto.", "response": "Embe."},
    {"id": 3, "lang": "sw", "prompt": "Mwezi wa Aprili una siku ngapi?", "response": "Una siku thelathini."},
    {"id": 4, "lang": "sw", "prompt": "Andika barua fupi kwa bibi yako.", "response": "Bibi mpendwa, nakukumbuka."},
]
CHINESE = [
    {"id": 1, "lang": "zh", "prompt": "肯尼亚的首都是哪个城市？", "response": "首都是内罗毕。"},
    {"id": 3, "lang": "zh", "prompt": "四月有多少天？", "response": "有三十天。"},
]


def paired(rows: list[dict[str, Any]] = SWAHILI) -> list[dict[str, Any]]:
    """Rows with their English beside them."""
    english = {row["id"]: row["prompt"] for row in ENGLISH}
    return [{**row, "prompt_en": english[row["id"]]} for row in rows]


def write(path: Path, rows: list[Any]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in raw.decode().split("\n") if line]


def run(folder: Path, *sources: dict[str, Any], checks: dict[str, Any] | None = None, **options: Any) -> Any:
    """The card, the rows and the rejects of a run in this process."""
    place = folder / "out"
    built = [PairSource.from_dict(source, "sources") for source in sources]
    given = {"output": str(place), "cache_dir": str(folder / "cache"), **options}
    card = pair(built, PairOptions(**given), Checks(**(checks or {})))
    return card, lines(place / "rows.jsonl"), lines(place / "rejects.jsonl")


def ids(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(row["lang"], row["id"]) for row in rows]
