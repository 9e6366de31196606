"""Peak memory of training with the connection against TRL's on the same rows.

    python bench/memory.py [--steps 3]

Each case is a process of its own that makes the model, the rows and the trainer and takes a few optimiser steps
(AdamW, fp32, one thread, no checkpointing: what a step keeps for its backward shows). A figure is the peak above
what the process held after importing everything and before making the model. glibc is told to hand large blocks back
at once, so that the peak is of what is in use and not of what the allocator keeps.

Writes bench/results/memory.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from cctuning import ConnectionConfig
from cctuning.connection.parts import LowRankTransform, Transform
from measuring import arguments, one_thread, peak_mib, quartiles, record, write
from shapes import SMALL, llama
from toys import ours, rows, stepper, tokenizer, trl
from training_step import ANSWER, BATCH, NONE, REFERENCE, TOKENS

BATCHES = {"weights": BATCH, "activations": 2 * BATCH}  # which of the two a step of SMALL spends more memory on
FULL_NORMS = "sampled, norms of whole vectors"  # without LowRankTransform.moved's shortcut: what it saves
CASES: dict[str, ConnectionConfig | None] = {
    "TRL": None,
    "plain": NONE,
    "sampled": ConnectionConfig("gated"),
    "sampled, references as it trains": ConnectionConfig("gated", reference_weights="current"),
    "sampled, decision_rank 64": ConnectionConfig("gated", decision_rank=64),
    FULL_NORMS: ConnectionConfig("gated"),
    "both": ConnectionConfig("gated", paths="both"),
    "adaptive": ConnectionConfig(connection="adaptive"),
}
TARGETS = {"sampled": 1.08}


def alone(case: str, shape_name: str, steps: int, seed: int) -> None:
    """Train, and print the peak."""
    one_thread(seed)
    shape, batch = SMALL, BATCHES[shape_name]
    made, connection = tokenizer(shape.vocab), CASES[case]
    data = rows(2 * batch, TOKENS, ANSWER, REFERENCE, shape.vocab, seed=seed)
    if case == FULL_NORMS:
        patch.object(LowRankTransform, "moved", Transform.moved).start()  # for this process, which ends with the case
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        model, place = llama(shape, seed), Path(folder)
        if connection is None:
            trainer: Any = trl(model, data, made, place, batch)
        else:
            trainer = ours(model, data, made, place, batch, connection)
        step = stepper(trainer)
        for _ in range(steps):
            step()
    print(json.dumps({"mib": peak_mib() - before}))


def peak(case: str, shape: str, steps: int, seed: int) -> float:
    command = [sys.executable, __file__, "--alone", case, shape, "--steps", str(steps), "--seed", str(seed)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "SHAPE"), help="(of the benchmark itself)")
    options = parser.parse_args()
    if options.alone:
        alone(*options.alone, options.steps, options.seed)
        return
    one_thread(options.seed)
    result = record(options.seed, steps=options.steps, tokens=TOKENS, cases=[])
    for shape, batch in BATCHES.items():
        found: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(options.rounds):
            for case in tqdm(list(CASES), desc=f"{shape}, round {number + 1}", leave=False):
                found[case].append(peak(case, shape, options.steps, options.seed + number))
        rival = quartiles(found["TRL"])[1]
        for case, values in found.items():
            middle = quartiles(values)[1]
            print(f"{middle / rival:6.3f}  {case}, {shape} ({middle:.0f} MiB)", flush=True)
            result["cases"].append(
                {
                    "name": case,
                    "shape": shape,
                    "batch": batch,
                    "peak_mib": [round(value) for value in values],
                    "ratio": round(middle / rival, 4),
                    "target": TARGETS.get(case),
                }
            )
    write("memory", result, options.output)


if __name__ == "__main__":
    main()
