"""Fitting the matrix of the adaptive connection: streaming products against numpy's least squares on the same pairs.

    python bench/fitting.py [--prompts 1000 10000 100000] [--rounds 2]

d = 1024, 8 layers, so 8 pairs a prompt, fp32, one thread; a tenth of the prompts held out. Pairs are y = x M + noise
with the x correlated (a decaying spectrum), M near the identity. numpy's `lstsq` is given the pairs that are fitted
as one array, as it needs them, and the same held-out pairs judge both. Memory is the peak of a process of its own
above what it held before the first pair; where the arrays alone would pass `--limit_gib` numpy is not run. Where
both run they alternate, ours first and numpy first in turn.

Writes bench/results/fitting.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from measuring import alternate, arguments, one_thread, peak_mib, ratio, record, show, timed, write

SIZE, LAYERS, STEP = 1024, 8, 512  # width, pairs a prompt, prompts a batch


def truth(seed: int) -> tuple[Tensor, Tensor]:
    """The spectrum of x (d,), and M (d, d)."""
    draw = torch.Generator().manual_seed(seed)
    spectrum = 1 / torch.arange(1, SIZE + 1).sqrt()
    return spectrum, torch.eye(SIZE) + 0.3 / SIZE**0.5 * torch.randn(SIZE, SIZE, generator=draw)


def pairs(prompts: int, seed: int, held_out: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pairs (n, d): a tenth of the prompts if `held_out`, the others if not."""
    spectrum, matrix = truth(seed)
    wanted = prompts // 10 if held_out else prompts - prompts // 10
    draw = torch.Generator().manual_seed(2 * seed + held_out)
    for start in range(0, wanted, STEP):
        count = LAYERS * min(STEP, wanted - start)
        x = torch.randn(count, SIZE, generator=draw) * spectrum
        yield x, x @ matrix + 0.1 * spectrum.mean() * torch.randn(count, SIZE, generator=draw)


def stream(batches: list[tuple[Tensor, Tensor, bool]] | Iterator[tuple[Tensor, Tensor, bool]]) -> Any:
    """Our fit over (x, y, held out)."""
    from cctuning.model.adaptive import StreamingLeastSquares

    solver = StreamingLeastSquares(SIZE)
    for x, y, held in batches:
        solver.add(x, y, torch.full((len(x),), held))
    return solver.solve()


def numpy_fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y, rcond=None)[0]


def held_out_error(matrix: Tensor, prompts: int, seed: int) -> float:
    """`||X M - Y||^2 / ||Y||^2` over the held-out pairs, in fp64 and from the pairs themselves."""
    missed = whole = 0.0
    for x, y in pairs(prompts, seed, True):
        missed += float((x.double() @ matrix.double() - y.double()).square().sum())
        whole += float(y.double().square().sum())
    return missed / whole


def memory(which: str, prompts: int, seed: int) -> float:
    """MiB that a process of its own takes for the fit, at its peak, over what it held when it began."""
    command = [sys.executable, __file__, "--alone", which, "--prompts", str(prompts), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def alone(which: str, prompts: int, seed: int) -> None:
    from cctuning.model.adaptive import StreamingLeastSquares  # noqa: F401  # imported before the count begins

    torch.eye(SIZE, dtype=torch.float64) @ torch.eye(SIZE, dtype=torch.float64)  # so are the libraries' own buffers
    before = peak_mib()
    if which == "stream":
        stream((x, y, held) for held in (False, True) for x, y in pairs(prompts, seed, held))
    else:
        x, y = (torch.cat(side).numpy() for side in zip(*pairs(prompts, seed, False), strict=True))
        numpy_fit(x, y)
    print(json.dumps({"mib": peak_mib() - before}))


def compare(prompts: int, rounds: int, seed: int) -> dict[str, Any]:
    """Both on the same pairs: time, held-out error, memory."""
    fitted, judged = list(pairs(prompts, seed, False)), list(pairs(prompts, seed, True))
    x, y = (torch.cat(side).numpy() for side in zip(*fitted, strict=True))
    batches = [(x, y, False) for x, y in fitted] + [(x, y, True) for x, y in judged]
    found: dict[str, Tensor] = {}
    times = alternate(
        {
            "stream": lambda: found.update(stream=stream(batches).matrix),
            "numpy": lambda: found.update(numpy=torch.from_numpy(numpy_fit(x, y))),
        },
        rounds,
        warm=0,
        desc=f"{prompts} prompts",
    )
    one = ratio(times, "stream", "numpy", target=0.2)
    show([one])
    errors = {name: held_out_error(matrix, prompts, seed) for name, matrix in found.items()}
    return {
        "prompts": prompts,
        "time": one,
        "error_held_out": {name: round(error, 6) for name, error in errors.items()},
        "error_difference": round(errors["stream"] - errors["numpy"], 8),
        "memory_mib": {name: round(memory(name, prompts, seed)) for name in ("stream", "numpy")},
    }


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--limit_gib", type=float, default=6, help="of numpy's arrays; beyond it ours runs alone")
    parser.add_argument("--alone", choices=["stream", "numpy"], help="(of the benchmark itself)")
    options = parser.parse_args()
    one_thread(options.seed)
    if options.alone:
        alone(options.alone, options.prompts[0], options.seed)
        return
    result = record(options.seed, size=SIZE, layers=LAYERS, cases=[])
    for prompts in options.prompts:
        arrays = 2 * prompts * LAYERS * SIZE * (4 + 8 + 8) / 2**30  # fp32, lstsq's fp64, LAPACK's copy
        if arrays <= options.limit_gib:
            case = compare(prompts, options.rounds, options.seed)
        else:
            batches = ((x, y, held) for held in (False, True) for x, y in pairs(prompts, options.seed, held))
            shown = tqdm(batches, leave=False, desc=f"{prompts} prompts")
            wall, cpu = timed(lambda shown=shown: stream(shown))
            case = {
                "prompts": prompts,
                "seconds_with_making_the_pairs": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
                "memory_mib": {"stream": round(memory("stream", prompts, options.seed))},
                "numpy": f"not run: its arrays alone take {arrays:.0f} GiB",
            }
        print(json.dumps({key: value for key, value in case.items() if key != "time"}), flush=True)
        result["cases"].append(case)
    write("fitting", result, options.output)


if __name__ == "__main__":
    main()
