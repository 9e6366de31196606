"""Summarise a run before its first step: rows, steps, trained weights, memory, and likely mistakes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from cctuning.connection import ConnectionConfig
from cctuning.connection.config import ALIGN_OPTIONS
from cctuning.errors import UserError
from cctuning.model.connected import ATTRIBUTE
from cctuning.progress import duration
from cctuning.training.config import CCConfig
from cctuning.training.options import RunOptions
from cctuning.training.sampling import undisturbed

FEW_STEPS = 20
ADAM = 8  # bytes per trained weight, in fp32
STATES = {"adafactor": 1, "sgd": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2}  # bytes per weight


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Rows are counted as they are tokenised, memory in bytes per device."""

    rows: dict[str, int]  # language -> training rows
    paired: dict[str, int]  # language -> training rows with a reference
    answered: int  # training rows with a response
    tokens: int  # of all training rows, without references
    steps: int  # optimizer steps
    rows_a_step: int  # over all processes; a mean if batches are packed
    epochs: float
    warmup: int  # steps
    trains: dict[str, int]  # part (`base`, `LoRA`, `connection`) -> trained weights
    weights: int
    memory: int  # weights, gradients, optimizer and the copy for base_decay, calculated
    device: tuple[str, int]  # kind and memory; 0 if unknown
    parallel: dict[str, int]  # language -> parallel rows, with each reference once as a row of its own
    beside: int  # parallel rows in a batch for each answered row
    align_first: int = 0  # steps on parallel text alone
    packed: bool = False

    def lines(self, exports: Mapping[str, str | None]) -> list[str]:
        """The plan as text; `exports` is the result of `model.exportable.obstacles`."""
        first = f"alone in the first {self.align_first} steps, then " if self.align_first else ""
        parallel = [
            f"parallel:   {sum(self.parallel.values())} rows ({_by_language(self.parallel)}); {first}{self.beside} "
            "beside each answered row"
        ]
        can = [
            {"merged": "plain checkpoint", "lora": "LoRA"}[name] for name, reason in exports.items() if reason is None
        ]
        trained = sum(self.trains.values())
        parts = ", ".join(f"{name} {_count(count)}" for name, count in self.trains.items() if count)
        kind, size = self.device
        room = f" of {_bytes(size)} on the device ({kind})" if size else f" ({kind})"
        return [
            f"rows:       {sum(self.rows.values())} ({_by_language(self.rows)}); "
            f"{sum(self.paired.values())} with a reference, "
            f"{self.answered} with an answer, {_count(self.tokens)} tokens",
            *(parallel if self.parallel else []),
            f"steps:      {self.steps} of {'about ' * self.packed}{self.rows_a_step} rows, {self.epochs:.3g} epochs, "
            f"warmup {self.warmup}",
            f"trains:     {_count(trained)} of {_count(self.weights)} weights: {parts}",
            f"memory:     about {_bytes(self.memory)}{room} before activations, calculated",
            f"exports to: {' or '.join(can) or 'neither a plain checkpoint nor a LoRA'}",
        ]


def plan(trainer: Any) -> Plan:
    """The plan of a `CCTrainer`."""
    args, rows = trainer.args, trainer.train_dataset
    languages, references = rows["lang"], [len(ids) for ids in rows["reference_input_ids"]]
    labels = rows["labels"]
    answered = sum(any(label != -100 for label in row) for row in labels)
    processes, parts = max(1, args.world_size), args.gradient_accumulation_steps
    rows_a_step, batches = args.train_batch_size * processes * parts, len(trainer._get_train_sampler())
    if args.packing:
        rows_a_step = min(len(rows), round(len(rows) * parts / max(1, batches)))
    per_epoch = max(1, math.ceil(batches / parts))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch) + args.align_first
    trains = {"base": 0, "LoRA": 0, "connection": 0}
    held, weights, gradients, kept = 0, 0, 0, 0
    for name, parameter in trainer.model.named_parameters():
        count = parameter.numel()
        weights += count * (2 if "4bit" in type(parameter).__name__.lower() else 1)
        held += count * parameter.element_size()
        if parameter.requires_grad:
            part = "connection" if ATTRIBUTE in name else "LoRA" if "lora_" in name else "base"
            trains[part] += count
            gradients += count * parameter.element_size()
            if part != "connection" and args.base_decay:
                kept += count * parameter.element_size()
    optim = str(getattr(args.optim, "value", args.optim))
    state = STATES.get(optim, ADAM) * sum(trains.values())
    shared = processes if trainer.is_fsdp_enabled else 1
    device = trainer.args.device
    size = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Plan(
        rows=dict(Counter(languages)),
        paired=dict(Counter(lang for lang, length in zip(languages, references, strict=True) if length)),
        answered=answered,
        tokens=sum(len(row) for row in labels),
        steps=steps,
        rows_a_step=rows_a_step,
        epochs=(steps - args.align_first) / per_epoch,
        warmup=args.get_warmup_steps(steps),
        trains=trains,
        weights=weights,
        memory=(held + gradients + state + kept) // shared,
        device=(device.type, size),
        parallel=dict(Counter(trainer.parallel["lang"])) if trainer.parallel is not None else {},
        beside=args.parallel_rows if trainer.parallel is not None else 0,
        align_first=args.align_first,
        packed=bool(args.packing),
    )


def doubts(plan: Plan, args: Any) -> Iterator[str]:
    """Warnings about a plan that looks like a mistake."""
    if plan.steps < FEW_STEPS:
        total = sum(plan.rows.values())
        advice = (
            "raise max_steps"
            if args.max_steps > 0
            else ("lower gradient_accumulation_steps or the batch size, or raise num_train_epochs")
        )
        yield f"only {plan.steps} optimizer steps ({total} rows, {plan.rows_a_step} per step): {advice}"
    bins = args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    if plan.packed and plan.rows_a_step < 1.5 * bins and sum(plan.rows.values()) > bins:
        yield (
            f"packing: {args.max_length} tokens (max_length) hold little more than one row with its parallel text, so "
            "little is packed: raise max_length"
        )
    if plan.warmup * 2 > plan.steps:
        yield f"warmup_steps: {plan.warmup} of {plan.steps} steps: the learning rate hardly reaches its value"
    elif plan.warmup and plan.steps <= 10:
        yield f"warmup_steps: the first of {plan.steps} steps has a learning rate of 0; set it to 0"
    if 0 < plan.device[1] < plan.memory:
        yield (
            f"memory: {_bytes(plan.memory)} before activations do not fit the device's {_bytes(plan.device[1])}: use "
            "tune: lora, dtype: bfloat16, load_in_4bit, or several devices with --accelerate_config fsdp2"
        )
    for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
        chosen, every = getattr(args, strategy), getattr(args, steps)
        if str(getattr(chosen, "value", chosen)) == "steps" and every and every > plan.steps:
            said = (
                "there is no evaluation" if strategy == "eval_strategy" else "no checkpoint is written before the end"
            )
            yield f"{steps}: {every:g} is more than the run's {plan.steps} steps: {said}"


def log_often_enough(plan: Plan, args: Any) -> str | None:
    """Lower `logging_steps` if the run would end before its first log line; a note if so."""
    chosen = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if chosen != "steps" or args.logging_steps <= plan.steps:
        return None
    before, args.logging_steps = args.logging_steps, 1
    return f"logging_steps: {before:g} is more than the run's {plan.steps} steps; 1 is used"


def trial(trainer: Any) -> tuple[float, int, str]:
    """Run the longest batch forward and backward; only the references of these batches are recorded.

    Weights, generators and the optimizer stay as they are.

    Returns:
        Seconds of an optimizer step; the most bytes the device held (0 if unknown); what recording the references
        takes (empty if nothing is recorded).

    Raises:
        UserError: it does not fit the device.
    """
    args, model = trainer.args, trainer.model
    rows = trainer.train_dataset
    lengths = [len(ids) for ids in rows["input_ids"]]
    if args.packing:
        batches = sorted(trainer._get_train_sampler(), key=lambda batch: sum(lengths[place] for place in batch))
        longest, middle = batches[-1], batches[len(batches) // 2]
    else:
        places = sorted(range(len(rows)), key=lambda place: lengths[place])
        longest, middle = (found[: args.train_batch_size] for found in (places[::-1], places[len(rows) // 2 :]))
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
    cuda = args.device.type == "cuda"
    seconds, recording = 0.0, ""
    collate = trainer.training_collator()
    batches = [collate([rows[place] for place in places]) for places in (longest, middle, middle)]
    try:
        with undisturbed():
            if trainer.recording is not None:
                recording = trainer.recording.try_out(batches)
            for batch in map(trainer._prepare_inputs, batches):  # the first also warms up; the last is timed
                began = time.perf_counter()
                model.train()
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, batch)
                trainer.accelerator.backward(loss)
                if cuda:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - began
                model.zero_grad()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "dry_run: the longest rows do not fit on the accelerator: lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps) or max_length, or use tune: lora."
        ) from error
    seconds *= args.gradient_accumulation_steps
    return seconds, torch.cuda.max_memory_allocated() if cuda else 0, recording


def expected(plan: Plan, seconds: float, peak: int, recording: str) -> list[str]:
    """The results of a trial for the whole run, as lines."""
    whole = duration(seconds * plan.steps)
    lines = [f"time:       about {whole}: {seconds:.3g} s a step, measured on rows of median length"]
    if recording:
        lines.append(f"recording:  {recording}")
    if peak:
        optimizer = sum(plan.trains.values()) * ADAM
        lines.append(f"peak:       {_bytes(peak + optimizer)} with the longest rows, measured, plus the optimizer")
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
