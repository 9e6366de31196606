"""A trace of a few training steps: what ran when, on the CPU and on the accelerator, for anyone to look at.

transformers has no such option of its own. The trace is in Chrome's format, which https://ui.perfetto.dev and
chrome://tracing open; it holds the names of operations, their times and shapes, and nothing of the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.profiler import profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

TRACE_FILE = "trace.json"
SKIPPED = 2  # steps before the first one traced, where the run has as many: they allocate, and choose kernels


class StepProfiler(TrainerCallback):
    """Traces `steps` optimiser steps and writes `directory`/trace.json, on the main process alone."""

    def __init__(self, steps: int, directory: Path) -> None:
        self.steps, self.directory = steps, directory
        self.profiler: profile | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            skipped = max(0, min(SKIPPED, state.max_steps - state.global_step - self.steps))
            warmup = min(1, skipped)  # traced and thrown away: tracing itself has a first time
            when = schedule(skip_first=skipped - warmup, wait=0, warmup=warmup, active=self.steps, repeat=1)
            self.profiler = profile(schedule=when, on_trace_ready=self._write, record_shapes=True)
            self.profiler.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.profiler is not None:
            self.profiler.stop()  # writes, where the run had fewer steps than were asked for

    def _write(self, profiler: profile) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.directory / TRACE_FILE))
