"""Row tokens per second without padding: our trainer padded, padding_free and packed, against TRL's with packing.

    CC_TUNING_DATA=DATA python bench/packing.py [--rounds 5] [--rows 128]

The lengths are those of Alpaca (DATA/sft/alpaca, English side: words and signs, a token each), up to LIMIT tokens a
row; the words are drawn. All cases train on the same rows, a random Llama (shapes.SMALL), fp32, one thread, with the
same attention (sdpa). A round is one epoch of each case: batches of ROWS rows where the number of rows is fixed, and
of one bin of BIN tokens where they are packed, which is about as many tokens. The connection is the default
(`align`, references recorded before the first step and not in the time); `plain` is `connection: none`.

Writes bench/results/packing.json.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from cctuning import ConnectionConfig
from measuring import alternate, arguments, one_thread, ratio, record, show, write
from shapes import SMALL, llama
from toys import ours, rows, stepper, tokenizer, trl

ROWS, BIN, LIMIT = 8, 1024, 512
NONE, ALIGN = ConnectionConfig(connection="none"), ConnectionConfig()
PADDING_FREE = {"padding_free": True}
PACKED = {"packing": True, "max_length": BIN, "train_sampling_strategy": "random"}


def lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the answer (with its end mark) of `count` rows of Alpaca."""
    place = Path(os.environ.get("CC_TUNING_DATA", Path(__file__).parents[2] / "shared" / "data"))
    files = sorted((place / "sft" / "alpaca").glob("*.jsonl.gz"))
    if not files:
        raise SystemExit(
            f"{place / 'sft' / 'alpaca'}: no *.jsonl.gz; set CC_TUNING_DATA to a directory with sft/alpaca"
        )
    with gzip.open(files[0], "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    token = re.compile(r"\w+|[^\w\s]")
    found = [
        (len(token.findall(row["prompt_en"])), len(token.findall(row["response_en"])) + 1)
        for row in random.Random(seed).sample(read, min(2 * count, len(read)))
    ]
    return [(prompt, answer) for prompt, answer in found if prompt and answer > 1 and prompt + answer <= LIMIT][:count]


def data(found: list[tuple[int, int]], seed: int) -> Dataset:
    """Rows of those lengths, each with a reference as long as its prompt."""
    made = [
        rows(1, prompt + answer, answer, prompt, SMALL.vocab, seed=seed + number)
        for number, (prompt, answer) in enumerate(found)
    ]
    return concatenate_datasets(made)


def epoch(trainer: Any, checkpointing: str | None = None) -> Callable[[], None]:
    """One epoch of `trainer`."""
    step, count = stepper(trainer, checkpointing), len(trainer.get_train_dataloader())

    def run() -> None:
        for _ in range(count):
            step()

    return run


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=128, help="rows of an epoch")
    options = parser.parse_args()
    one_thread(options.seed)
    found = lengths(options.rows, options.seed)
    tokens = sum(map(sum, found))
    made, trained = tokenizer(SMALL.vocab), data(found, options.seed)
    with tempfile.TemporaryDirectory() as folder:

        def our(connection: ConnectionConfig, more: dict[str, Any]) -> Callable[[], None]:
            batch = 1 if "packing" in more else ROWS
            return epoch(ours(llama(SMALL, options.seed), trained, made, Path(folder), batch, connection, **more))

        cases = {
            "padded": our(ALIGN, {}),
            "padding_free": our(ALIGN, PADDING_FREE),
            "packed": our(ALIGN, PACKED),
            "plain, packed": our(NONE, PACKED),
            "TRL packed": epoch(trl(llama(SMALL, options.seed), trained, made, Path(folder), 1, **PACKED)),
        }
        times = alternate(cases, options.rounds)
    ratios = [
        ratio(times, "packed", "TRL packed", target=1.0),
        ratio(times, "plain, packed", "TRL packed"),
        ratio(times, "packed", "padded", target=0.67),
        ratio(times, "padding_free", "padded"),
    ]
    show(ratios)
    rates = {one.name: round(tokens / one.seconds) for one in ratios}
    rates |= {one.rival: round(tokens / one.rival_seconds) for one in ratios}
    for name, rate in rates.items():
        print(f"{rate:8,} row tokens a second  {name}", flush=True)
    sizes = {"rows": len(found), "tokens": tokens, "longest": max(map(sum, found))}
    shape = {"batch": ROWS, "bin": BIN, "attention": "sdpa"}
    write("packing", record(options.seed, shape=SMALL, data=sizes | shape, rates=rates, cases=ratios), options.output)


if __name__ == "__main__":
    main()
