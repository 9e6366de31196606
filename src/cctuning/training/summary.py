"""Summarise a run before its first step: rows, steps, trained weights, memory, and likely mistakes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from cctuning.connection import ConnectionConfig
from cctuning.connection.config import ALIGN_OPTIONS
from cctuning.errors import UserError
from cctuning.model.connected import ATTRIBUTE
from cctuning.progress import duration
from cctuning.training.config import CCConfig
from cctuning.training.options import RunOptions
from cctuning.training.schedule import undisturbed

FEW_STEPS = 20
ADAM = 8  # bytes per trained weight, in fp32
STATES = {"adafactor": 1, "sgd": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2}  # bytes per weight


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Rows are counted as they are tokenised, memory in bytes per device."""

    rows: dict[str, int]  # language -> rows of an epoch
    paired: int  # of these with a reference
    answered: int  # of these with a response
    tokens: int  # of these, without references
    steps: int  # optimizer steps
    rows_a_step: int  # over all processes; a mean if batches are packed
    epochs: float
    warmup: int  # steps
    trains: dict[str, int]  # part (`base`, `LoRA`, `connection`) -> trained weights
    weights: int
    memory: int  # weights, gradients, optimizer and the copy for base_decay, calculated
    device: tuple[str, int]  # kind and memory; 0 if unknown
    pairs: dict[str, int]  # language -> pairs of parallel text as given, without those held out
    references: int  # of parallel text that are rows of their own
    held_out: dict[str, int]  # language -> pairs held out of training
    drawn: dict[str, int]  # language -> parallel rows that the run reads
    temperature: float
    beside: int  # parallel rows in a batch for each answered row
    align_first: int = 0  # steps on parallel text alone
    packed: bool = False

    def lines(self, exports: Mapping[str, str | None]) -> list[str]:
        """The plan as text; `exports` is the result of `model.lora.obstacles`."""
        rows = [
            f"rows:       {sum(self.rows.values())} ({_by_language(self.rows)}); {self.paired} with a reference, "
            f"{self.answered} with an answer, {_count(self.tokens)} tokens"
        ]
        if self.pairs:
            line = f"parallel:   {sum(self.pairs.values())} pairs ({_by_language(self.pairs)})"
            line += f", and their {self.references} references as rows" if self.references else ""
            if self.beside or self.align_first:
                first = f"alone in the first {self.align_first} steps, then " if self.align_first else ""
                rows.append(f"{line}; {first}{self.beside} beside each answered row")
            else:
                rows = [line]
            if self.held_out:
                rows.append(f"held out:   {_by_language(self.held_out)} pairs, to measure the alignment")
            if sum(self.drawn.values()) != sum(self.pairs.values()) + self.references or len(self.pairs) > 1:
                rows.append(
                    f"drawn:      about {sum(self.drawn.values())} parallel rows ({_by_language(self.drawn)}) "
                    f"in the run, by parallel_temperature: {self.temperature:g}"
                )
        can = [
            {"merged": "plain checkpoint", "lora": "LoRA"}[name] for name, reason in exports.items() if reason is None
        ]
        trained = sum(self.trains.values())
        parts = ", ".join(f"{name} {_count(count)}" for name, count in self.trains.items() if count)
        kind, size = self.device
        room = f" of {_bytes(size)} on the device ({kind})" if size else f" ({kind})"
        return [
            *rows,
            f"steps:      {self.steps} of {'about ' * self.packed}{self.rows_a_step} rows, {self.epochs:.3g} epochs, "
            f"warmup {self.warmup}",
            f"trains:     {_count(trained)} of {_count(self.weights)} weights: {parts}",
            f"memory:     about {_bytes(self.memory)}{room} before activations, calculated",
            f"exports to: {' or '.join(can) or 'neither a plain checkpoint nor a LoRA'}",
        ]


def plan(trainer: Any) -> Plan:
    """The plan of a `CCTrainer`."""
    args, rows, schedule = trainer.args, trainer.train_dataset, trainer._get_train_sampler()
    labels = rows["labels"]
    processes, parts = max(1, args.world_size), args.gradient_accumulation_steps
    rows_a_step = args.train_batch_size * processes * parts
    if args.packing:
        rows_a_step = min(len(rows), round(len(rows) * parts / max(1, len(schedule))))
    steps = trainer.planned_steps()
    epochs = (steps - args.align_first) / schedule.steps_an_epoch
    languages = Counter(trainer.table["lang"][schedule.answered :]) if schedule.mixture is not None else Counter()
    references = languages.pop(args.reference_language, 0)
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
        rows=dict(Counter(rows["lang"])),
        paired=sum(len(ids) > 0 for ids in rows["reference_input_ids"]),
        answered=sum(any(label != -100 for label in row) for row in labels),
        tokens=sum(len(row) for row in labels),
        steps=steps,
        rows_a_step=rows_a_step,
        epochs=epochs,
        warmup=args.get_warmup_steps(steps),
        trains=trains,
        weights=weights,
        memory=(held + gradients + state + kept) // shared,
        device=(device.type, size),
        pairs=dict(languages),
        references=references,
        held_out=dict(Counter(trainer.held["lang"])) if trainer.held is not None else {},
        drawn=schedule.drawn(epochs),
        temperature=args.parallel_temperature,
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


def trial(trainer: Any) -> list[str]:
    """Run batches forward and backward, and return what a run would take, as lines.

    Weights, generators and the optimizer stay as they are. Of parallel text alone (`align_first`) and of the rows
    after it, the largest batch and one of median size are run; only their references are recorded.

    Raises:
        UserError: they do not fit the device.
    """
    args, model, table = trainer.args, trainer.model, trainer.table
    schedule, steps = trainer._get_train_sampler(), trainer.planned_steps()
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
