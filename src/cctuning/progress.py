"""Print progress as lines where there is no terminal.

A progress bar rewrites its line, which is unreadable in a log file. `as_lines` turns all tqdm bars of this process,
also those of libraries, into a line every 15 seconds; a shorter wait prints nothing.
"""

from __future__ import annotations

import io
import time
from typing import Any

EVERY = 15.0  # seconds


def as_lines(every: float = EVERY) -> None:
    """Make every tqdm bar print a line every `every` seconds."""
    from tqdm import std

    if hasattr(std.tqdm, "lines"):
        return
    std.tqdm.lines = True

    def start(bar: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("disable", False) is None:  # tqdm: no bar without a terminal
            kwargs["disable"] = False
        kwargs.setdefault("mininterval", min(1.0, every))
        begun(bar, *args, **kwargs)

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.time()
        if now - getattr(bar, "last_line", getattr(bar, "start_t", now)) >= every:
            bar.last_line, bar.shown = now, bar.n
            print(_line(bar.format_dict), file=bar.fp, flush=True)
        return True

    def close(bar: Any) -> None:
        if not getattr(bar, "disable", True) and getattr(bar, "shown", bar.n) != bar.n:
            print(_line(bar.format_dict), file=bar.fp, flush=True)
        bar.leave, bar.fp = False, io.StringIO()  # discards what tqdm writes when it closes
        ended(bar)

    begun, ended = std.tqdm.__init__, std.tqdm.close
    std.tqdm.__init__, std.tqdm.display, std.tqdm.close = start, display, close


def _line(state: dict[str, Any]) -> str:
    name = (state["prefix"] or "").strip().rstrip(":") or "progress"
    done, total, seconds = state["n"], state["total"], state["elapsed"]
    unit = "" if state["unit"] in ("", "it") else f" {state['unit'].strip()}"
    text = f"{name}: {done:,.0f}" + (f" of {total:,.0f}" if total else "") + f"{unit}, {duration(seconds)}"
    if total and 0 < done < total:
        text += f", about {duration(seconds * (total - done) / done)} to go"
    return text


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
