"""What a run will not do, said before it starts: options without effect, exports that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from cctuning.connection import ConnectionConfig
from cctuning.connection.config import ALIGN_OPTIONS
from cctuning.training.config import CCConfig
from cctuning.training.options import RunOptions


def without_effect(options: RunOptions, connection: ConnectionConfig, args: CCConfig) -> Iterator[str]:
    """A line for each group of options that differ from their defaults and have no effect beside the others."""
    if options.tune != "lora":
        yield from _line(options.adapter_given(), f"tune: {options.tune}")
    if options.tune == "connection" and args.base_decay:
        yield from _line(["base_decay"], "tune: connection, where the base stays as it is")
    if connection.connection == "none" and options.parallel:
        yield from _line(["parallel"], "connection: none")
    if not (options.parallel and options.data):
        mixed = [name for name in ("parallel_rows",) if getattr(args, name) != CCConfig.parallel_rows]
        yield from _line(mixed, "data without parallel text, or parallel text alone")
    if connection.connection == "align":
        known = {"connection", "reference_weights", *ALIGN_OPTIONS}
        given = [name for name in _given(connection) if name not in known]
        yield from _line(given, "connection: align")
    elif connection.connection == "gated":
        theirs = {"align_loss", "align_weight", "layers"}
        given = [name for name in _given(connection) if name in ALIGN_OPTIONS and name not in theirs]
        yield from _line(given, "connection: gated")
    if connection.connection == "none":
        yield from _line([name for name in _given(connection) if name != "connection"], "connection: none")
    elif connection.decision == "fixed":
        yield from _line(
            [name for name in _given(connection) if name in ("decision_rank", "decision_bias")], "decision: fixed"
        )
    if options.eval_data and args.eval_strategy == "no":
        yield from _line(["eval_data"], "eval_strategy: no")


def unforeseen(obstacles: Mapping[str, str | None], tune: str) -> Iterator[str]:
    """What a run cannot be exported as, said before its first step.

    Args:
        obstacles: of `model.exportable`.
        tune: `full` and `connection` are not asked for a LoRA by those who choose them.
    """
    if obstacles["fold"] is not None:
        yield f"this run cannot be exported as a plain checkpoint: {obstacles['fold']}"
    if obstacles["lora"] is not None and tune == "lora" and obstacles["fold"] is None:
        yield f"this run cannot be exported as a LoRA, but as a fold: {obstacles['lora']}"


def _given(part: RunOptions | ConnectionConfig) -> list[str]:
    fresh = type(part)()
    return [option.name for option in fields(part) if getattr(part, option.name) != getattr(fresh, option.name)]


def _line(names: list[str], beside: str) -> Iterator[str]:
    if names:
        yield f"{', '.join(names)}: no effect with {beside}."
