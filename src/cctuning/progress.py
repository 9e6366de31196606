"""Progress where nobody sees a bar: every quarter of a minute a line that says how far a wait has come.

A bar rewrites its line, which makes a log file unreadable; without one, minutes pass in silence. `as_lines` turns all
bars of tqdm, ours and the libraries', into lines; a wait that is over before the first is due prints nothing.
"""

from __future__ import annotations

import io
import time
from typing import Any

EVERY = 15.0  # seconds


def as_lines(every: float = EVERY) -> None:
    """From here on, in this process: bars print lines."""
    from tqdm import std

    if hasattr(std.tqdm, "lines"):
        return
    std.tqdm.lines = True

    def start(bar: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("disable", False) is None:  # "off where there is no terminal", which is where we are
            kwargs["disable"] = False
        kwargs.setdefault("mininterval", min(1.0, every))
        begun(bar, *args, **kwargs)

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.time()
        if now - getattr(bar, "last_line", getattr(bar, "start_t", now)) >= every:
            bar.last_line = now
            print(_line(bar.format_dict), file=bar.fp, flush=True)
        return True

    def close(bar: Any) -> None:
        if not getattr(bar, "disable", True) and hasattr(
            bar, "last_line"
        ):  # whoever read of it is told that it is over
            print(_line(bar.format_dict), file=bar.fp, flush=True)
        bar.leave, bar.fp = False, io.StringIO()  # what it would write on its way out
        ended(bar)

    begun, ended = std.tqdm.__init__, std.tqdm.close
    std.tqdm.__init__, std.tqdm.display, std.tqdm.close = start, display, close


def _line(state: dict[str, Any]) -> str:
    name = (state["prefix"] or "").strip().rstrip(":") or "progress"
    done, total, seconds = state["n"], state["total"], state["elapsed"]
    unit = "" if state["unit"] in ("", "it") else f" {state['unit'].strip()}"
    text = f"{name}: {done:,.0f}" + (f" of {total:,.0f}" if total else "") + f"{unit}, {_time(seconds)}"
    if total and 0 < done < total:
        text += f", about {_time(seconds * (total - done) / done)} to go"
    return text


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
