"""Time from a command to the first optimiser step, and to tokenise rows, against TRL on the same rows.

    python bench/startup.py [--rows 20000 --rounds 3] [--rows 1000000 --rounds 1]

*First step*: a process of its own that imports, makes a small random model and the trainer on 64 rows, and calls
`train()` for one step; wall and CPU time of the whole process. *Tokenising*: the time that building the trainer
takes on many rows, with a BPE tokenizer trained here on them (words of two alphabets), after 64 rows that are not
timed. TRL reads the prompts and responses; ours reads the references too, so both are also given per token read, the
ratio that says what the code costs.

Writes bench/results/startup.json.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import alternate, arguments, one_thread, ratio, record, show, write
from shapes import Shape

TINY = Shape(layers=2, width=64, ffn=128, heads=4, kv_heads=4, vocab=4096)
ALPHABETS = ("abdegiklmnoprstuw", "абвгдеиклмнопрстуя")


def corpus(count: int, seed: int) -> dict[str, list[str]]:
    """Prompts of some 20 words, responses of 10, references of 20, of 4,000 made-up words a language."""
    draw = random.Random(seed)
    words = [["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(4000)] for letters in ALPHABETS]

    def text(side: int, number: int) -> str:
        return " ".join(draw.choices(words[side], k=number))

    columns = {"prompt": (1, 20), "completion": (1, 10), "prompt_en": (0, 20)}
    made = {name: [text(side, number) for _ in range(count)] for name, (side, number) in columns.items()}
    return made | {"completion": [" " + completion for completion in made["completion"]]}


def bpe(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of 4,096 entries, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def trainer(which: str, columns: dict[str, list[str]], made: Any, folder: str) -> Any:
    from datasets import Dataset

    from cctuning import ConnectionConfig
    from shapes import llama
    from toys import ours, trl

    data, model = Dataset.from_dict(columns), llama(TINY)
    if which == "TRL":
        return trl(model, data, made, Path(folder), 8, max_steps=1)
    return ours(model, data, made, Path(folder), 8, ConnectionConfig("gated"), max_steps=1)


def first_step(which: str) -> None:
    """What the process that is timed does."""
    one_thread()
    columns = corpus(64, 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer(which, columns, bpe(columns["prompt"]), folder).train()


def command(which: str) -> None:
    done = subprocess.run([sys.executable, __file__, "--alone", which], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


def process_times(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each process, alternating."""

    times: dict[str, list[tuple[float, float]]] = {"TRL": [], "sampled": []}
    for number in range(rounds):
        for which in times if number % 2 == 0 else reversed(times):
            before, start = os.times(), time.perf_counter()
            command(which)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            times[which].append((time.perf_counter() - start, cpu))
    return times


def tokenising(count: int, rounds: int, seed: int) -> dict[str, Any]:
    """Building either trainer on `count` rows."""
    columns = corpus(count, seed)
    made = bpe(columns["prompt"][:2000] + columns["prompt_en"][:2000])
    kept: dict[str, Any] = {}

    def build(which: str, columns: dict[str, list[str]]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            kept[which] = trainer(which, columns, made, folder).train_dataset.data

    import datasets

    datasets.disable_caching()  # TRL's second round would be read back
    for name in ("TRL", "sampled"):
        build(name, corpus(64, seed))  # imports, and whatever else has a first time
    times = alternate(
        {name: lambda name=name: build(name, columns) for name in ("TRL", "sampled")},
        rounds,
        warm=0,
        desc=f"{count} rows",
    )
    import pyarrow.compute as pc

    read = {
        name: sum(
            pc.sum(pc.list_value_length(table.column(column))).as_py()
            for column in ("input_ids", "reference_input_ids")
            if column in table.column_names
        )
        for name, table in kept.items()
    }
    one = ratio(times, "sampled", "TRL", target=1.1)
    one.name = f"tokenising {count} rows"
    show([one])
    return {
        "ratio": one,
        "tokens": read,
        "ratio_per_token": round(one.ratio * read["TRL"] / read["sampled"], 4),
        "rows_per_cpu_second": {
            name: round(count / statistics.median(cpu for _, cpu in pairs)) for name, pairs in times.items()
        },
    }


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--alone", choices=["TRL", "sampled"], help="(of the benchmark itself)")
    options = parser.parse_args()
    if options.alone:
        first_step(options.alone)
        return
    one_thread(options.seed)
    first = ratio(process_times(options.rounds), "sampled", "TRL", target=1.1)
    first.name = "time to the first step"
    show([first])
    rows = tokenising(options.rows, options.rounds, options.seed)
    print(json.dumps({key: value for key, value in rows.items() if key != "ratio"}))
    write("startup", record(options.seed, rows=options.rows, cases=[first, rows.pop("ratio")], **rows), options.output)


if __name__ == "__main__":
    main()
