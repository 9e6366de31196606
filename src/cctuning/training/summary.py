"""Summarise a run before its first step: rows, steps, trained weights, memory, and likely mistakes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cctuning.connection import ConnectionConfig
from cctuning.connection.config import ALIGN_OPTIONS
from cctuning.errors import UserError
from cctuning.model.connected import ATTRIBUTE
from cctuning.progress import duration
from cctuning.training.config import CCConfig
from cctuning.training.metrics import undisturbed
from cctuning.training.options import RunOptions
from cctuning.training.schedule import Schedule

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

FEW_STEPS = 20
ADAM = 8  # bytes per trained weight, in fp32
STATES = {"adafactor": 1, "sgd": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2}  # bytes per weight


@dataclass(frozen=True)
class Plan:
    """A run before it starts."""

    rows: dict[str, int]  # language -> rows of an epoch, as they are tokenised
    steps: int  # optimizer steps
    rows_a_step: int  # over all processes; a mean if batches are packed
    warmup: int  # steps
    trains: dict[str, int]  # part (`base`, `LoRA`, `connection`) -> trained weights
    memory: int  # bytes per device of weights, gradients, optimizer and the copy for base_decay, calculated
    room: int  # bytes of the device; 0 if unknown


def plan(trainer: CCTrainer, exports: Mapping[str, str | None]) -> tuple[Plan, list[str]]:
    """The plan of a run, and what is printed about it; `exports` is the result of `model.lora.obstacles`."""
    args, schedule, steps = trainer.args, trainer.schedule(), trainer.planned_steps()
    rows: Any = trainer.train_dataset
    rows_a_step = args.train_batch_size * max(1, args.world_size) * args.gradient_accumulation_steps
    if args.packing:
        rows_a_step = min(len(rows), round(len(rows) * args.gradient_accumulation_steps / max(1, len(schedule))))
    trains = {"base": 0, "LoRA": 0, "connection": 0}
    weights = memory = 0
    for name, parameter in trainer.model.named_parameters():
        weights += parameter.numel() * (2 if "4bit" in type(parameter).__name__.lower() else 1)
        copies = 1
        if parameter.requires_grad:
            part = "connection" if ATTRIBUTE in name else "LoRA" if "lora_" in name else "base"
            trains[part] += parameter.numel()
            copies += 1 + (part != "connection" and args.base_decay > 0)
        memory += copies * parameter.numel() * parameter.element_size()
    trained = sum(trains.values())
    memory += STATES.get(str(getattr(args.optim, "value", args.optim)), ADAM) * trained
    memory //= max(1, args.world_size) if trainer.is_fsdp_enabled else 1
    device = args.device
    size = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    found = Plan(dict(Counter(rows["lang"])), steps, rows_a_step, args.get_warmup_steps(steps), trains, memory, size)
    epochs = (steps - args.align_first) / schedule.steps_an_epoch
    parts = ", ".join(f"{name} {_count(count)}" for name, count in trains.items() if count)
    can = [name for key, name in (("merged", "plain checkpoint"), ("lora", "LoRA")) if exports[key] is None]
    return found, [
        *([] if schedule.mixture is not None and not schedule.answered else [_answered_rows(rows)]),
        *(_parallel_text(trainer, schedule, epochs) if schedule.mixture is not None else []),
        f"steps:      {steps} of {'about ' * args.packing}{rows_a_step} rows, {epochs:.3g} epochs, "
        f"warmup {found.warmup}",
        f"trains:     {_count(trained)} of {_count(weights)} weights: {parts}",
        f"memory:     about {_bytes(memory)}{f' of {_bytes(size)} on the device' if size else ''} ({device.type}) "
        "before activations, calculated",
        f"exports to: {' or '.join(can) or 'neither a plain checkpoint nor a LoRA'}",
    ]


def _answered_rows(rows: Any) -> str:
    labels = rows["labels"]
    answered = sum(any(label != -100 for label in row) for row in labels)
    paired = sum(len(ids) > 0 for ids in rows["reference_input_ids"])
    return (
        f"rows:       {len(rows)} ({_by_language(Counter(rows['lang']))}); {paired} with a reference, {answered} with "
        f"an answer, {_count(sum(map(len, labels)))} tokens"
    )


def _parallel_text(trainer: CCTrainer, schedule: Schedule, epochs: float) -> Iterator[str]:
    """Pairs as given, pairs held out, and how many rows are drawn if these differ."""
    args, pairs = trainer.args, Counter(trainer.table["lang"][schedule.answered :])
    drawn, total = schedule.drawn(epochs), sum(pairs.values())
    references = pairs.pop(args.reference_language, 0)
    line = f"parallel:   {sum(pairs.values())} pairs ({_by_language(pairs)})"
    line += f", and their {references} references as rows" if references else ""
    if schedule.answered:
        first = f"alone in the first {args.align_first} steps, then " if args.align_first else ""
        line += f"; {first}{args.parallel_rows} beside each answered row"
    yield line
    if trainer.held is not None:
        yield f"held out:   {_by_language(Counter(trainer.held['lang']))} pairs, to measure the alignment"
    if sum(drawn.values()) != total or len(pairs) > 1:
        yield (
            f"drawn:      about {sum(drawn.values())} parallel rows ({_by_language(drawn)}) in the run, by "
            f"parallel_temperature: {args.parallel_temperature:g}"
        )


def doubts(plan: Plan, args: Any) -> Iterator[str]:
    """Warnings about a plan that looks like a mistake."""
    if plan.steps < FEW_STEPS:
        total = sum(plan.rows.values())
        advice = "lower gradient_accumulation_steps or the batch size, or raise num_train_epochs"
        advice = "raise max_steps" if args.max_steps > 0 else advice
        yield f"only {plan.steps} optimizer steps ({total} rows, {plan.rows_a_step} per step): {advice}"
    if args.activation_checkpointing and args.device.type == "cpu":
        yield "activation_checkpointing: a CPU is faster without it where memory allows; set it to false"
    bins = args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    if args.packing and plan.rows_a_step < 1.5 * bins and sum(plan.rows.values()) > bins:
        yield (
            f"packing: {args.max_length} tokens (max_length) hold little more than one row with its parallel text, so "
            "little is packed: raise max_length"
        )
    if plan.warmup * 2 > plan.steps:
        yield f"warmup_steps: {plan.warmup} of {plan.steps} steps: the learning rate hardly reaches its value"
    elif plan.warmup and plan.steps <= 10:
        yield f"warmup_steps: the first of {plan.steps} steps has a learning rate of 0; set it to 0"
    if 0 < plan.room < plan.memory:
        yield (
            f"memory: {_bytes(plan.memory)} before activations do not fit the device's {_bytes(plan.room)}: use "
            "tune: lora, dtype: bfloat16, load_in_4bit, or several devices with --accelerate_config fsdp2"
        )
    for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
        chosen, every = getattr(args, strategy), getattr(args, steps)
        if str(getattr(chosen, "value", chosen)) == "steps" and every and every > plan.steps:
            said = "it is evaluated at its end only" if strategy == "eval_strategy" else "no checkpoint before the end"
            yield f"{steps}: {every:g} is more than the run's {plan.steps} steps: {said}"


def log_often_enough(plan: Plan, args: Any) -> str | None:
    """Lower `logging_steps` if the run would end before its first log line; a note if so."""
    chosen = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if chosen != "steps" or args.logging_steps <= plan.steps:
        return None
    before, args.logging_steps = args.logging_steps, 1
    return f"logging_steps: {before:g} is more than the run's {plan.steps} steps; 1 is used"


def trial(trainer: CCTrainer) -> list[str]:
    """Run batches forward and backward, and return what a run would take, as lines.

    Weights, generators and the optimizer stay as they are. Of parallel text alone (`align_first`) and of the rows
    after it, the largest batch and one of median size are run; only their references are recorded.

    Raises:
        UserError: they do not fit the device.
    """
    args, model, table = trainer.args, trainer.model, trainer.table
    schedule, steps = trainer.schedule(), trainer.planned_steps()
    lengths = np.asarray(schedule.lengths)
    batches, first = list(schedule), args.align_first * args.gradient_accumulation_steps
    phases = {"parallel text": batches[:first], "answered rows": batches[first:]}
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
    cuda = args.device.type == "cuda"
    seconds, recording = {}, ""
    chosen: list[Any] = []
    for found in filter(None, phases.values()):
        found.sort(key=lambda rows: len(rows) * lengths[rows].max())
        chosen += [found[-1], found[len(found) // 2], found[len(found) // 2]]
    chosen = [trainer.data_collator([table[row] for row in rows]) for rows in chosen]
    try:
        with undisturbed():
            if trainer.recording is not None:
                recording = trainer.recording.try_out(chosen)
            for number, batch in enumerate(map(trainer._prepare_inputs, chosen)):
                began = time.perf_counter()
                model.train()
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, batch)
                trainer.accelerator.backward(loss)
                if cuda:
                    torch.cuda.synchronize()
                seconds[number // 3] = time.perf_counter() - began  # of the last of three; the first also warms up
                model.zero_grad()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "dry_run: the longest rows do not fit on the accelerator: lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps) or max_length, or use tune: lora."
        ) from error
    each = [value * args.gradient_accumulation_steps for value in seconds.values()]
    counts = [args.align_first, steps - args.align_first] if args.align_first else [steps]
    parts = ", ".join(
        f"{count} steps of {name if args.align_first else 'median length'} at {time:.3g} s"
        for count, time, name in zip(counts, each, phases, strict=False)
    )
    whole = duration(sum(count * time for count, time in zip(counts, each, strict=True)))
    lines = [f"time:       about {whole}, an estimate: {parts}, measured on one batch"]
    if recording:
        lines.append(f"recording:  {recording}")
    if cuda:
        peak = torch.cuda.max_memory_allocated() + ADAM * sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"peak:       {_bytes(peak)} with the largest batch, measured, plus the optimizer")
    return lines


def without_effect(options: RunOptions, connection: ConnectionConfig, args: CCConfig) -> list[str]:
    """A note for each group of options that are set and have no effect together with the others."""
    fresh, kind = ConnectionConfig(), connection.connection
    given = [one.name for one in fields(fresh) if getattr(connection, one.name) != getattr(fresh, one.name)]
    given = [name for name in given if name != "connection"]
    aligned, gated = {"reference_weights", *ALIGN_OPTIONS}, {*ALIGN_OPTIONS} - {"align_loss", "align_weight", "layers"}
    fixed, single = ("decision_rank", "decision_bias"), args.per_device_train_batch_size == 1 and not options.parallel
    cases = [  # whether it holds, the options without effect, what they have no effect with
        (options.tune != "lora", options.adapter_given(), f"tune: {options.tune}"),
        (options.tune == "connection" and args.base_decay, ["base_decay"], "tune: connection"),
        (kind == "none" and options.parallel, ["parallel"], "connection: none"),
        (
            kind != "none" and options.data and options.parallel and not (args.parallel_rows or args.align_first),
            ["parallel"],
            "parallel_rows: 0 and no align_first",
        ),
        (
            args.parallel_rows != CCConfig.parallel_rows and not (options.parallel and options.data),
            ["parallel_rows"],
            "data without parallel text, or parallel text alone",
        ),
        (args.packing and args.train_sampling_strategy != "random", ["train_sampling_strategy"], "packing: true"),
        (args.padding_free and not args.packing and single, ["padding_free"], "per_device_train_batch_size: 1"),
        (kind == "align", [name for name in given if name not in aligned], "connection: align"),
        (kind == "gated", [name for name in given if name in gated], "connection: gated"),
        (kind == "none", given, "connection: none"),
        (
            kind != "none" and connection.decision == "fixed",
            [name for name in given if name in fixed],
            "decision: fixed",
        ),
        (options.eval_data and args.eval_strategy == "no", ["eval_data"], "eval_strategy: no"),
        (
            args.push_to_hub and args.hub_strategy != CCConfig.hub_strategy,
            ["hub_strategy"],
            "cctuning train, which uploads RUN/model at the end",
        ),
    ]
    return [f"{', '.join(names)}: no effect with {beside}." for holds, names, beside in cases if holds and names]


def unforeseen(obstacles: Mapping[str, str | None], tune: str) -> Iterator[str]:
    """Notes on what the run cannot be exported to; only `tune: lora` is expected to export a LoRA."""
    if obstacles["merged"] is not None:
        yield f"this run cannot be exported as a plain checkpoint: {obstacles['merged']}"
    if obstacles["lora"] is not None and tune == "lora" and obstacles["merged"] is None:
        yield f"this run cannot be exported as a LoRA, only merged: {obstacles['lora']}"


def _by_language(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or '?'} {count}" for name, count in Counter(counts).most_common())


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{number / 1024**3:.3g} GiB" if number >= 1024**3 / 10 else f"{number / 1024**2:.3g} MiB"
