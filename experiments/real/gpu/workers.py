"""Run a plan of cells, most valuable first, with several workers.

    python -m experiments.real.gpu.workers PLAN RESULTS --workers 12 --seconds 480 --checkpoints DIR

PLAN is JSON lines: `{"group", "cell"}`, or `{"group", "cell", "after", "take"}` for a cell whose options `take` are
those of the best cell of the group (or groups) `after` on `dev`; it waits until that is done. RESULTS is JSON lines of
records, written as each cell ends, so a plan that is cut off loses no more than what was running. A plan started
again goes on: what RESULTS holds is not run twice, and what failed is tried again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cctuning.errors import UserError

PIPE = str(Path(tempfile.gettempdir()) / "real-mps")  # a short path: a socket lies in it
TRIES = 3  # at a cell that runs out of device memory, before it counts as failed


def plan_of(path: Path) -> list[dict[str, Any]]:
    """The plan's lines.

    Raises:
        UserError: a file that is not there, or a line that is not part of a plan.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a plan (python -m experiments.real.plans NAME > {path}).")
    found: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            if text.strip():
                line = json.loads(text)
                found.append({"group": line["group"], "cell": dict(line["cell"]), **line})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: not a line of a plan; expected JSON with group and cell.") from None
    return found


class Queue:
    """The plan's state in one file beside the results, held by a lock.

    The state is kept by a hash of each line, so a plan may change between two calls.
    """

    def __init__(self, plan: Sequence[Mapping[str, Any]], results: Path) -> None:
        self.plan, self.results = list(plan), results
        self._state = results.with_suffix(".state")
        lines = (json.dumps(line, sort_keys=True).encode() for line in self.plan)
        self._keys = [hashlib.sha256(line).hexdigest()[:16] for line in lines]

    @contextmanager
    def _held(self) -> Iterator[dict[str, str]]:
        with self.results.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._state.read_text()) if self._state.is_file() else {}
            yield state
            scratch = self._state.with_suffix(".part")
            scratch.write_text(json.dumps(state))
            scratch.rename(self._state)

    def reset(self) -> None:
        """Forget what was running when the queue last stopped, and what failed."""
        with self._held() as state:
            for key in [key for key, how in state.items() if how != "done"]:
                del state[key]

    def failed(self) -> int:
        """The number of lines that failed."""
        with self._held() as state:
            return sum(state.get(key) == "failed" for key in self._keys)

    def take(self) -> int | None:
        """Claim the next line that can run and return its place; -1 if all lines left wait, None if there are none."""
        with self._held() as state:
            open_ = [place for place, key in enumerate(self._keys) if key not in state]
            for place in open_:
                after = groups_before(self.plan[place])
                group = [key for key, line in zip(self._keys, self.plan, strict=True) if line["group"] in after]
                if all(state.get(key) in ("done", "failed") for key in group):
                    state[self._keys[place]] = "running"
                    return place
            return -1 if open_ else None

    def leave(self, place: int) -> None:
        """Return a line to the queue."""
        with self._held() as state:
            state.pop(self._keys[place], None)

    def end(self, place: int, record: Mapping[str, Any] | None) -> None:
        """Mark a line as done or failed, and store its record."""
        with self._held() as state:
            state[self._keys[place]] = "failed" if record is None else "done"
            if record is not None:
                with self.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**record, "place": place, "group": self.plan[place]["group"]}) + "\n")

    def records(self, groups: Sequence[str]) -> list[dict[str, Any]]:
        """The groups' records."""
        with self._held():
            lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.is_file() else []
        return [record for record in map(json.loads, lines) if record["group"] in groups]


def groups_before(line: Mapping[str, Any]) -> list[str]:
    """The groups that a line waits for and chooses from."""
    after = line.get("after") or []
    return [after] if isinstance(after, str) else list(after)


def resolved(line: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The line's cell, with the options that it takes from the best of `records`."""
    cell = json.loads(json.dumps(line["cell"]))
    if line.get("after"):
        from experiments.real.figures import best

        chosen = best({number: [record] for number, record in enumerate(records)})
        found = records[chosen]["cell"]["setting"]
        cell["setting"] |= {name: found[name] for name in line["take"]}
    return dict(cell)


def work(number: int, queue: Queue, until: float, given: Mapping[str, Path], accept: Sequence[str] = ()) -> None:
    """Run cells until the time is up or none is left."""
    import torch

    torch.set_num_threads(1)
    from experiments.real.cells import Lab, cell_of

    home = queue.results.parent
    full = 0  # times in a row that the device had no room
    lab = Lab(home / "cells", accept, given, home / "packs")
    parent = multiprocessing.parent_process()  # a plan that was killed goes no further
    while time.time() < until and (parent is None or parent.is_alive()):
        place = queue.take()
        if place is None:
            return
        if place < 0:
            time.sleep(0.5)
            continue
        line, started, record = queue.plan[place], time.time(), None
        try:
            cell = cell_of(resolved(line, queue.records(groups_before(line))))
            record = lab.run(cell)
            print(f"[{number}] {time.time() - started:5.0f} s  {line['group']}: {cell.label}", flush=True)
        except torch.OutOfMemoryError as error:
            full += 1
            print(f"[{number}] no memory for {line['group']}: {str(error)[:90]}", flush=True)
            torch.cuda.empty_cache()
            if full < TRIES:
                queue.leave(place)
                time.sleep(20 * (number + 1) / 12)  # the workers share the memory: not all again at once
                continue
        except UserError as error:
            print(f"[{number}] FAILED {line['group']}: {error}", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"[{number}] FAILED {line['group']}: {line['cell']}", flush=True)
        full = 0
        queue.end(place, record)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--workers", type=int, default=8, help="about 12 GB of the device each")
    parser.add_argument("--seconds", type=float, default=480, help="no cell is started after this")
    parser.add_argument("--checkpoints", type=Path, help="folder with the cut checkpoints, BASE/WORLD")
    parser.add_argument(
        "--known", type=Path, nargs="*", default=[], help="records made before: their cells are not run"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    said = parser.parse_args(argv)
    folders = said.checkpoints.glob("*/*") if said.checkpoints else ()
    given = {f"{folder.parent.name} {folder.name}": folder for folder in folders}
    queue = Queue(plan_of(said.plan), said.results)
    if said.worker is not None:
        work(said.worker, queue, said.until, given)
        return
    said.results.parent.mkdir(parents=True, exist_ok=True)
    queue.reset()
    if said.known:
        from experiments.real.cells import Lab
        from experiments.real.table import records_of

        lab = Lab(said.results.parent / "cells", given=given)
        print(f"known: {len([lab.take(record) for record in records_of(said.known)])} cells", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= _shared_gpu()
    again = [sys.executable, "-m", "experiments.real.gpu.workers", *(argv or sys.argv[1:])]
    until = ["--until", str(time.time() + said.seconds)]
    workers = [
        subprocess.Popen([*again, *until, "--worker", str(number)], env=environment) for number in range(said.workers)
    ]
    codes = [worker.wait() for worker in workers]
    print(f"workers ended: {codes}", flush=True)


def _shared_gpu() -> dict[str, str]:
    """Start CUDA MPS, so that processes use the GPU at the same time and not in turns."""
    folders = {"CUDA_MPS_PIPE_DIRECTORY": PIPE, "CUDA_MPS_LOG_DIRECTORY": PIPE}
    try:
        Path(PIPE).mkdir(exist_ok=True)
        command, environment = ["nvidia-cuda-mps-control", "-d"], {**os.environ, **folders}
        subprocess.run(command, env=environment, check=True, timeout=20, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        print(f"CUDA MPS could not be started ({why}); the workers take turns on the device.", flush=True)
        return {}
    return folders


if __name__ == "__main__":
    main()
