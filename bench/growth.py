"""How a step grows: with rows, row length, layers and width.

    python bench/growth.py [--rounds 3] [--only rows length layers width]

CPU time of a step of plain SFT (`connection: none`) and of the gated connection with recorded references on the same
rows, alternating, at four points along each axis around a small Llama; beside them the floor: the plain step's time
times what the arithmetic says the connection adds (flops.py). Where its line follows the floor it grows as the
arithmetic does.

Writes bench/results/growth.json and a picture an axis, bench/results/growth-<axis>.svg.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import picture
from flops import Rows, connected_step, plain_step
from measuring import alternate, arguments, one_thread, ratio, record, write
from shapes import Shape, llama
from toys import ours, rows, stepper, tokenizer
from training_step import NONE, SAMPLED

BASE = Shape(layers=4, width=256, ffn=704, heads=4, kv_heads=4, vocab=2048)
BATCH = Rows(rows=8, tokens=128, answer=64, references=0, reference=64)  # recorded: none runs in a step
AXES = {
    "rows": ("rows of a batch", [4, 8, 16, 32]),
    "length": ("tokens of a row (half of them response; the reference half as long)", [64, 128, 256, 512]),
    "layers": ("layers", [2, 4, 8, 16]),
    "width": ("width d", [128, 256, 512, 768]),
}


def point(axis: str, value: int) -> tuple[Shape, Rows]:
    """The shape and the batch there."""
    if axis == "rows":
        return BASE, replace(BATCH, rows=value)
    if axis == "length":
        return BASE, replace(BATCH, tokens=value, answer=value // 2, reference=value // 2)
    if axis == "layers":
        return replace(BASE, layers=value), BATCH
    return replace(BASE, width=value, ffn=11 * value // 4), BATCH


def measure(axis: str, value: int, rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    shape, batch = point(axis, value)
    made = tokenizer(shape.vocab)
    data = rows(2 * batch.rows, batch.tokens, batch.answer, batch.reference, shape.vocab, 1, seed)
    steps = {
        name: stepper(ours(llama(shape, seed), data, made, folder, batch.rows, connection))
        for name, connection in (("plain", NONE), ("sampled", SAMPLED))
    }
    times = alternate(steps, rounds, desc=f"{axis} {value}")
    floor = connected_step(shape, batch) / plain_step(shape, batch)
    return {
        "at": value,
        "seconds": {name: round(statistics.median(cpu for _, cpu in pairs), 4) for name, pairs in times.items()},
        "ratio": ratio(times, "sampled", "plain", floor),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES))
    options = parser.parse_args()
    one_thread(options.seed)
    result = record(options.seed, shape=BASE, batch=BATCH, axes={})
    with tempfile.TemporaryDirectory() as folder:
        for axis in options.only:
            label, values = AXES[axis]
            points = [measure(axis, value, options.rounds, options.seed, Path(folder)) for value in values]
            result["axes"][axis] = {"label": label, "points": points}
            plain = [one["seconds"]["plain"] for one in points]
            drawn = {
                "plain SFT": plain,
                "connected": [one["seconds"]["sampled"] for one in points],
                "floor": [seconds * one["ratio"].floor for seconds, one in zip(plain, points, strict=True)],
            }
            picture.growth(
                options.output / f"growth-{axis}.svg", f"Time of a step by {axis}", values, drawn, label, "CPU seconds"
            )
            for one in points:
                found = one["ratio"]
                print(f"{axis} {one['at']}: {found.ratio:.3f}, floor {found.floor:.3f}: {found.over_floor:.3f} x")
    write("growth", result, options.output)


if __name__ == "__main__":
    main()
