"""Rows, the formats they are written in, and short ways to write and load them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets

from cctuning.data import Source, load_rows

ROWS = [
    {"prompt": "Mji mkuu wa Kenya?", "response": "Nairobi", "lang": "sw", "prompt_en": "The capital of Kenya?"},
    {"prompt": "法国的首都？\n请回答。", "response": "巴黎", "lang": "zh", "prompt_en": 'The "capital", of France?'},
    {"prompt": "Habari\u2028yako?", "response": None, "lang": "sw", "prompt_en": "How are you?"},
    {"prompt": "What is 2+2?", "response": "4", "lang": "en", "prompt_en": None},
]
CANON = [
    {"prompt": r["prompt"], "response": r["response"], "lang": r["lang"], "reference": r["prompt_en"], "row": i}
    for i, r in enumerate(ROWS)
]


def write(path, rows=ROWS, encoding="utf-8"):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    return str(path)


def load(path, **options):
    keywords = {k: options.pop(k) for k in ("reference_language", "seed", "require_reference") if k in options}
    return load_rows([Source(str(path), **options)], **keywords)


def plain(dataset):
    return [{k: v for k, v in row.items() if k != "origin"} for row in dataset]


def jsonl(folder):
    return write(folder / "rows.jsonl")


def bom(folder):
    return write(folder / "rows.jsonl", encoding="utf-8-sig")


def compressed(folder):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(Path(write(folder / "x.jsonl")).read_bytes()))
    return str(path)


def array(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(folder / "rows.json")


def as_csv(folder):
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return str(folder / "rows.csv")


def parquet(folder):
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder):
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return str(folder / "saved")


def directory(folder):
    (folder / "many").mkdir()
    write(folder / "many" / "train-1.jsonl", ROWS[:2]), write(folder / "many" / "train-2.jsonl", ROWS[2:])
    write(folder / "many" / "test.jsonl")
    return str(folder / "many")


def one(tmp_path, record, **options):
    write(tmp_path / "one.jsonl", [record])
    row = load(tmp_path / "one.jsonl", **{"lang": "sw", **options})[0][0]
    return row["prompt"], row["response"], row["reference"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}
