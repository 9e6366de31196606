"""How the benchmarks of speed measure: alternating rounds, one thread, ratios within a round, and a record.

A figure is the median over rounds of the ratio of two things that ran in the same round, one after the other, with
the order turned round every time: what the machine does beside it falls on both. The spread is the quartiles. On a
CPU the ratio is of *process CPU time* on one thread, which hardly depends on other work; wall time is kept beside
it. On an accelerator it is wall time around a synchronisation."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("cc-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


@dataclass
class Ratio:
    """A case against its rival.

    `ratio`, `low`, `high`: median and quartiles over rounds of CPU time (of wall time on an accelerator); `wall_ratio`
    the median of wall time; `seconds`, `rival_seconds` median wall time of each.

    `floor`: the ratio that the arithmetic alone gives (flops.py), None where it says nothing. `target`: what the case
    is to reach; None where none was set. `over_floor`: ratio / floor.
    """

    name: str
    rival: str
    ratio: float
    low: float
    high: float
    wall_ratio: float
    seconds: float
    rival_seconds: float
    rounds: int
    floor: float | None = None
    over_floor: float | None = None
    target: float | None = None


Times = dict[str, list[tuple[float, float]]]  # name -> (wall, CPU) seconds of each round


def one_thread(seed: int = 0) -> None:
    """Pin torch to one thread, and seed it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of `run`."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(
    cases: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1, until: float | None = None, desc: str = ""
) -> Times:
    """Run all cases once a round, `rounds` times, in turning order.

    Args:
        warm: rounds before them that are not counted.
        until: `time.monotonic()` after which no further round starts (one is run in any case).
    """
    names, times = list(cases), {name: [] for name in cases}
    for number in tqdm(range(-warm, rounds), desc=desc or ", ".join(names), leave=False):
        if number > 0 and until is not None and time.monotonic() > until:
            break
        for name in names if number % 2 == 0 else reversed(names):
            both = timed(cases[name])
            if number >= 0:
                times[name].append(both)
    return times


def ratio(times: Times, name: str, rival: str, floor: float | None = None, target: float | None = None) -> Ratio:
    """`name` against `rival`, from rounds that both were part of."""
    which = 0 if torch.cuda.is_available() else 1
    mine, theirs = times[name], times[rival]
    rounds = [one[which] / other[which] for one, other in zip(mine, theirs, strict=True)]
    low, median, high = quartiles(rounds)
    wall = statistics.median(one[0] / other[0] for one, other in zip(mine, theirs, strict=True))
    seconds, rival_seconds = (statistics.median(pair[0] for pair in side) for side in (mine, theirs))
    return Ratio(
        name,
        rival,
        round(median, 4),
        round(low, 4),
        round(high, 4),
        round(wall, 4),
        round(seconds, 5),
        round(rival_seconds, 5),
        len(rounds),
        None if floor is None else round(floor, 4),
        None if floor is None else round(median / floor, 4),
        target,
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def machine() -> dict[str, Any]:
    """What the figures were measured on, without names of machines or paths."""
    found = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": found or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": device,
        "load_average": round(os.getloadavg()[0], 2),
        "platform": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""
    try:
        root = Path(__file__).parents[1]
        ask = ["git", "-C", str(root)]
        head = subprocess.run([*ask, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*ask, "status", "--porcelain", "src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def record(seed: int, **rest: Any) -> dict[str, Any]:
    """What every result opens with."""
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        **rest,
    }


def write(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `result` as `name`.json, ratios as mappings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)
    return path


def show(ratios: Sequence[Ratio]) -> None:
    """Print ratios as they come."""
    for one in ratios:
        floor = f"  floor {one.floor:.3f}, {one.over_floor:.3f} x it" if one.floor and one.over_floor else ""
        target = f"  (target {one.target:g})" if one.target is not None else ""
        print(f"{one.ratio:6.3f} [{one.low:.3f}, {one.high:.3f}]  {one.name} / {one.rival}{floor}{target}", flush=True)


def peak_mib() -> float:
    """Most memory this process has held, MiB (`ru_maxrss` would count what the process that started it held)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="alternating rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    return parser
