"""Memory that each process of a sharded run takes to start: every process reading its own shares, or the whole model.

    python bench/start_memory.py [--processes 2 --rounds 1]

A random Llama of 101 M weights (tied embeddings, in files of 64 MB) is started by `accelerate launch` with
recipes/accelerate/fsdp2.yaml on gloo processes, as `cctuning train` starts it, and stopped where the first step would
begin. A figure is the peak above what a process held when all was imported: of its resident memory, and of the part
of it that is no mapped file (sampled every 2 ms; pages of mapped files can be dropped when memory is wanted). glibc
is told to hand large blocks back at once.

*shares*: training/sharded_loading.py. *whole*: a model that cannot be read so, as transformers and accelerate load it.
Where the files have the type that is asked for, from_pretrained only maps them (*whole* then takes little anonymous
memory, and the first process has the whole model among its mapped pages); where they do not, as with a bf16 checkpoint
that is trained in fp32, it makes a copy of all weights in every process.

Writes bench/results/start_memory.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from cctuning import CCConfig, ConnectionConfig
from cctuning.training import prepare, run
from cctuning.training.options import RunOptions
from cctuning.training.sharded_loading import NotShardable
from measuring import arguments, one_thread, record, write
from shapes import Shape, llama
from toys import options as training_options
from toys import rows, tokenizer

ROOT = Path(__file__).parents[1]
SHAPE = Shape(layers=5, width=1024, ffn=4096, heads=8, kv_heads=8, vocab=16384)
WAYS = ("whole", "shares")
CASES = (("full", "bfloat16", "float32"), ("full", "float32", "float32"), ("lora", "bfloat16", "bfloat16"))
NORMS = (2 * SHAPE.layers + 1) * SHAPE.width
WEIGHTS = SHAPE.layers * SHAPE.layer_weights + SHAPE.vocab * SHAPE.width + NORMS
MIB = 1024**2


def held() -> dict[str, float]:
    """Resident memory of this process now, MiB; `anonymous`: without mapped files; `peak`: the most of it so far."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "VmHWM": "peak"}
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {names[key]: value for key, _, value in (line.partition(":") for line in lines) if key in names}
    return {name: int(value.split()[0]) / 1024 for name, value in found.items()}


class Watch(threading.Thread):
    """The most anonymous memory that was held, MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0.0

    def run(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, held()["anonymous"])
            time.sleep(0.002)


def alone(way: str, tune: str, dtype: str, base: Path) -> None:
    """What each process does: prepare, print what it took, end."""
    from tests.parity.launched import on_processors

    one_thread()
    on_processors()
    if way == "whole":
        patch.object(prepare, "ShardedLoader", side_effect=NotShardable("the benchmark asks for it")).start()
    made = RunOptions(model=str(base), data=[str(base.parent / "rows.jsonl")], tune=tune, dtype=dtype)
    place = base.parent / "run"
    args = CCConfig(**training_options(place, 1))
    before, watch = held(), Watch()
    watch.start()

    class Begin(TrainerCallback):
        def on_train_begin(self, *anything: Any, **more: Any) -> None:
            now = held()
            result = {
                "rank": trainer.accelerator.process_index,
                "peak": now["peak"] - before["resident"],
                "peak_anonymous": watch.anonymous - before["anonymous"],
                "held": now["anonymous"] - before["anonymous"],
            }
            print(json.dumps(result), flush=True)
            torch.distributed.barrier()
            os._exit(0)

    trainer, _, start = prepare.prepare(
        made, ConnectionConfig("gated", transform_rank=16, decision_rank=16), args, place
    )
    trainer.add_callback(Begin())
    run.run_steps(trainer, None, start)


def measure(way: str, tune: str, dtype: str, base: Path, processes: int) -> list[dict[str, float]]:
    """What each process took, MiB."""
    config = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command += ["--num_processes", processes, "--mixed_precision", "no", "--main_process_port", 0]
    command += [__file__, "--alone", way, tune, dtype, base]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    if done.returncode or len(found) != processes:
        sys.exit(done.stderr[-3000:])
    found.sort(key=lambda process: process.pop("rank"))
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--alone", nargs=4, metavar=("WAY", "TUNE", "DTYPE", "BASE"), help="(of the benchmark itself)")
    options = parser.parse_args()
    if options.alone:
        way, tune, dtype, base = options.alone
        alone(way, tune, dtype, Path(base))
        return
    one_thread(options.seed)
    result = record(options.seed, processes=options.processes, cases=[])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bases(folder, options.seed)
        for tune, stored, asked in tqdm(CASES, desc="cases", leave=False):
            size = WEIGHTS * getattr(torch, asked).itemsize / MIB
            for way in WAYS:
                rounds = [measure(way, tune, asked, folder / stored, options.processes) for _ in range(options.rounds)]
                ranks = [
                    {key: [round(found[rank][key]) for found in rounds] for key in rounds[0][rank]}
                    for rank in range(options.processes)
                ]
                print(f"{way}: {tune}, {stored} read as {asked} ({size:.0f} MiB): {ranks}", flush=True)
                case = {"way": way, "tune": tune, "files": stored, "dtype": asked, "weights_mib": round(size)}
                result["cases"].append(case | {"processes_mib": ranks})
    write("start_memory", result, options.output)


def write_bases(folder: Path, seed: int) -> None:
    """The base in either type, its tokenizer, and rows."""
    for stored in ("float32", "bfloat16"):
        model = llama(SHAPE, seed, dtype=getattr(torch, stored))
        model.config.tie_word_embeddings = True
        model.tie_weights()
        assert sum(parameter.numel() for parameter in model.parameters()) == WEIGHTS
        model.save_pretrained(folder / stored, max_shard_size="64MB")
        tokenizer(SHAPE.vocab).save_pretrained(folder / stored)
    rows(8, 16, 8, 8, SHAPE.vocab).to_json(folder / "rows.jsonl")


if __name__ == "__main__":
    main()
