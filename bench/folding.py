"""Memory and time of a fold: file by file against the whole model in memory.

    python bench/folding.py [--layers 8 24]

A random bf16 Llama with a connection, each way in a process of its own; peak is of anonymous memory (what the process
itself holds; pages of mapped files, which the system takes back at will, are left out), sampled every few
milliseconds, less what the process held before it began. The outputs are compared bit for bit.

Writes bench/results/folding.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from cctuning import ConnectedModel
from cctuning.model.loading import load
from cctuning.model.merge_files import FileMerge
from cctuning.model.serialization import read_weights
from measuring import one_thread, record, write
from shapes import Shape, llama
from toys import tokenizer

WIDTH, FFN, VOCAB = 1024, 2816, 8192
# glibc keeps freed blocks once it has seen larger ones; so pinned, what is freed is given back, and memory is use.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1024**2)}
FILE_MIB = 24  # of a written file: about a layer of this model


def make(folder: Path, layers: int, seed: int) -> Shape:
    """A connected model on disk, in shards, its transform away from its start."""
    shape = Shape(layers, WIDTH, FFN, 16, 8, VOCAB)
    model = llama(shape, seed, dtype=torch.bfloat16)
    connected = ConnectedModel.attach(model)
    for number, connection in connected.connections.items():
        generator = torch.Generator().manual_seed(number)
        for parameter in connection.transform.parameters():
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    connected.save_pretrained(folder, base_trained=True)
    connected.unload().save_pretrained(folder, max_shard_size="128MB")
    tokenizer(VOCAB).save_pretrained(folder)
    return shape


def anonymous_mib() -> float:
    """Anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def child(way: str, folder: str, output: str) -> None:
    """Fold one way and print what it took."""
    one_thread()
    FileMerge(folder)  # imports and caches, which either way needs, are not its memory
    peak, stop = [anonymous_mib()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not stop.wait(0.002):
            peak.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    if way == "files":
        FileMerge(folder).write(Path(output), limit=FILE_MIB * 1024**2)
    else:
        connected = load(folder).connected
        assert connected is not None
        connected.merge_and_unload().save_pretrained(output)
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    print(json.dumps({"peak_mib": round(max(peak) - before, 1), "seconds": round(seconds, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    one_thread(args.seed)
    depths = [compare(layers, args.seed) for layers in args.layers]
    print(json.dumps(depths, indent=1))
    write("folding", record(args.seed, written_file_mib=FILE_MIB, depths=depths))


def compare(layers: int, seed: int) -> dict[str, Any]:
    """Both ways of folding a model of that depth, and whether they give the same bits."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        shape = make(Path(name) / "run", layers, seed)
        for way in ("memory", "files"):
            command = [sys.executable, __file__, "--child", way, f"{name}/run", f"{name}/{way}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
            found[way] = json.loads(done.stdout.strip().splitlines()[-1])
        one, other = (read_weights(Path(name) / way) for way in ("memory", "files"))
        equal = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    mib = 2 / 1024**2  # bf16
    sizes = {"model_mib": round(shape.parameters * mib, 1), "layer_mib": round(shape.layer_weights * mib, 1)}
    return {"layers": layers, **sizes, **found, "bit_for_bit": equal}


if __name__ == "__main__":
    main()
