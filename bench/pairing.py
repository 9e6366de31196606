"""Measure rows per second and memory of `cctuning pair`, by way and number of rows.

    python bench/pairing.py [--rows 1000 10000 100000] [--ways join parallel translate]

Rows are generated from a seed: numbered Swahili sentences of known words with their English, so that every check runs
and few rows fail. Translation is by a function that answers at once, so the engine is not measured. Each case runs in
a separate process. Memory is proportional set size, sampled ten times a second. CPU time depends less on other load
than wall time.

Writes bench/results/pairing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORDS = [  # subjects, verbs, objects, places: Swahili and English, word for word
    [("Mwalimu", "The teacher"), ("Daktari", "The doctor"), ("Mkulima", "The farmer"), ("Mtoto", "The child")],
    [("alinunua", "bought"), ("aliuza", "sold"), ("alileta", "brought"), ("alipata", "found")],
    [("vitabu", "books"), ("matunda", "fruits"), ("nguo", "clothes"), ("viti", "chairs"), ("mayai", "eggs")],
    [("sokoni", "at the market"), ("shuleni", "at school"), ("nyumbani", "at home"), ("mjini", "in town")],
    [("jana", "yesterday"), ("asubuhi", "in the morning"), ("jioni", "in the evening")],
]


def sentence(number: int, seed: int) -> tuple[str, str]:
    """Row `number`: Swahili and English, 10 to 18 words each."""
    rng = random.Random(seed * 10**9 + number)
    chosen = [rng.choice(words) for words in (*WORDS, *WORDS[1:4])]
    (who, did, what, where, when, did2, what2, where2), (who_, did_, what_, where_, when_, *rest) = zip(
        *chosen, strict=True
    )
    text = f"{who} {did} {what} {number} {where} {when}, na baadaye {did2} {what2} {where2}."
    return text, f"{who_} {did_} {number} {what_} {where_} {when_}, and later {' '.join(rest)}."


def translate(texts: list[str], source: str, target: str) -> list[str]:
    """An instant engine: sentences are identified by their number."""
    numbers = [int(next(word for word in text.split() if word.isdigit())) for text in texts]
    return [sentence(number, 0)[1] for number in numbers]


def write(folder: Path, way: str, rows: int) -> list[str]:
    """The inputs of a case, and the command's arguments for them."""
    order = list(range(rows))
    random.Random(0).shuffle(order)

    def put(name: str, lines: Iterator[str]) -> str:
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        return str(folder / name)

    def record(number: int, side: int) -> str:
        row = {
            "id": number,
            "prompt": sentence(number, 0)[side],
            "response": f"{'Jibu' if side == 0 else 'Answer'} {number}",
        }
        return json.dumps(row, ensure_ascii=False)

    if way == "parallel":
        sides = [
            put(f"t.{code}", (sentence(n, 0)[side] for n in range(rows))) for side, code in enumerate(("sw", "en"))
        ]
        return [*sides, "--way", "parallel", "--lang", "sw"]
    inputs = put("rows.jsonl", (record(number, 0) for number in range(rows)))
    if way == "join":
        return [inputs, "--lang", "sw", "--join", put("english.jsonl", (record(n, 1) for n in order)), "--key", "id"]
    engine = ["function", "function=pairing:translate", "batch_size=1000"]
    return [inputs, "--lang", "sw", "--translate", *engine, "--cache_dir", str(folder / "cache")]


def memory(processes: list[int]) -> int:
    """Proportional set size of some processes, in KiB; one that has ended counts nothing."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [
            int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        ]
    except OSError:
        return []


def case(way: str, rows: int, flags: list[str]) -> dict[str, Any]:
    """Make the rows, run the command, measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = write(folder, way, rows)
        command = [sys.executable, "-m", "cctuning", "pair", *arguments, "--output", str(folder / "out")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TQDM_DISABLE": "1"}
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        run = subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.DEVNULL)
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, memory([run.pid, *children(run.pid)]))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = run.wait()
        done.set()
        watcher.join()
        wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        if status:
            raise SystemExit(f"{way} {rows}: the command failed")
        card = json.loads((folder / "out" / "card.json").read_text(encoding="utf-8"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "way": way,
        "rows": rows,
        "kept": card["rows"],
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "rows_per_second": round(rows / wall),
        "rows_per_cpu_second": round(rows / cpu),
        "peak_mib": round(peak / 1024),
        "flags": flags,
    }


def main() -> None:
    """Run the cases and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--ways", nargs="+", choices=("join", "parallel", "translate"), default=["join", "parallel", "translate"]
    )
    parser.add_argument(
        "--flags", nargs="*", default=[], help="more flags of the command, without their dashes: name=value"
    )
    parser.add_argument("--result", default="bench/results/pairing.json")
    args = parser.parse_args()
    cases = []
    for rows in args.rows:
        for way in args.ways:
            cases.append(case(way, rows, [f"--{flag}" for flag in args.flags]))
            print(json.dumps(cases[-1]), flush=True)
    path = Path(args.result)
    if path.is_file():  # cases of another invocation stay
        old = json.loads(path.read_text(encoding="utf-8"))["cases"]
        keys = {(one["way"], one["rows"], tuple(one["flags"])) for one in cases}
        cases = [one for one in old if (one["way"], one["rows"], tuple(one["flags"])) not in keys] + cases
    record = {
        "command": "python bench/pairing.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work",
        "versions": {name: version(name) for name in ("cc-tuning", "lingua-language-detector", "numpy", "pyarrow")},
        "seed": 0,
        "cases": cases,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
