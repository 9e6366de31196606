"""Callbacks that watch a run: alignment by language and sample answers; and the decay towards the base."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from cctuning.model.connected import ATTRIBUTE
from cctuning.model.runner import evaluating
from cctuning.training.metrics import compare, sides, undisturbed

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

logger = logging.getLogger(__name__)
PAIRS, FEWEST = 64, 8  # measured per language, at most and at least
SHARE = 0.05  # of the rows that a run trains on; four forward passes of them take some 5 % of its time
LOOK_AT, MOVED = 50, 0.02  # the step at which the error should have fallen by this share of what it was
STATE = "alignment by language"  # of the trainer's state, in checkpoints
SAMPLES_FILE = "samples.jsonl"
ANSWER_TOKENS = 64


class AlignmentByLanguage(TrainerCallback):
    """Measure how well parallel text is aligned, by language, before and after training.

    Pairs that are held out of training are measured; in a language too small for that, a sample of the training text.
    It shows whether anything has moved, not whether the model answers better (see `cctuning evaluate`). Measures once
    more at step 50 and warns if the error has not fallen: the losses of single batches vary too much to tell.

    Attributes:
        before, after: language -> pairs, and found and error (means over layers); empty if not measured. `before` is
            kept in checkpoints, for a run that is resumed from one.
    """

    def __init__(self, trainer: CCTrainer) -> None:
        self.trainer = trainer
        self.languages: list[str] = []  # of each pair
        self.before: dict[str, dict[str, Any]] = {}
        self.after: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def record(self) -> None:
        """Choose the pairs, and record their references through the weights as they are."""
        held, rows, steps = self.trainer.held, self.trainer.table, self.trainer.planned_steps()
        pairs = [] if held is None else self._choose(held, steps)
        self.held_out = {pair["lang"] for pair in pairs}
        pairs += [pair for pair in self._choose(rows, steps) if pair["lang"] not in self.held_out]
        self.languages = [pair["lang"] for pair in pairs]
        if pairs:
            references, self._texts, self._which = sides(pairs)
            self._references = self.trainer.record(references)
            recorded: Any = self.trainer.connected.recorded
            self._references.statistics = recorded.statistics

    def _choose(self, rows: Any, steps: int) -> list[dict[str, Any]]:
        """Up to PAIRS pairs of each language, spread over the rows; fewer in a run of few steps."""
        args, taken = self.trainer.args, defaultdict(list)
        lengths = pc.list_value_length(rows.with_format("arrow")[:]["reference_input_ids"]).to_pylist()
        for number, (lang, length) in enumerate(zip(rows["lang"], lengths, strict=True)):
            if length and lang != args.reference_language:
                taken[lang].append(number)
        trained = steps * args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
        most = min(PAIRS, max(FEWEST, int(SHARE * trained / max(1, len(taken)))))
        chosen = [places[:: math.ceil(len(places) / most)] for places in taken.values()]
        return [rows[place] for places in chosen for place in places]

    def _measure(self) -> dict[str, dict[str, Any]]:
        if not self.languages:
            return {}
        made = compare(self._references, self.trainer.record(self._texts), self._which, self.languages)
        found, error = made.found.mean(dim=1).tolist(), made.error.mean(dim=1).tolist()
        return {
            code: {"pairs": made.pairs[row], "found": found[row], "error": error[row]}
            for row, code in enumerate(made.languages)
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure; in a resumed run, whose weights are not the start's, read what was measured then."""
        if state.global_step == 0:
            self.before = state.stateful_callbacks[STATE] = self._measure()
        else:
            self.before = state.stateful_callbacks.get(STATE, {})
        if {code: one["pairs"] for code, one in self.before.items()} != Counter(self.languages):
            self.before = {}  # other pairs are measured now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if the error has not fallen by step LOOK_AT."""
        if state.global_step != LOOK_AT or not self.before or state.max_steps <= LOOK_AT:
            return
        before, now = (fmean(one["error"] for one in of.values()) for of in (self.before, self._measure()))
        if now > (1 - MOVED) * before:
            change = "Lower learning_rate" if now > (1 + MOVED) * before else "Raise learning_rate or align_weight"
            logger.warning(
                f"the alignment error does not fall: {before:.3g} before training, {now:.3g} at step {LOOK_AT}. "
                f"{change}, or see cctuning diagnose."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure again."""
        self.after = self._measure()

    def as_dict(self) -> dict[str, Any] | None:
        """Language -> pairs, whether they are held out, and found and error (mean over layers) before and after; None
        if not measured."""
        found: dict[str, Any] = {}
        for code in self.after:
            one = {"pairs": self.after[code]["pairs"], "held_out": code in self.held_out}
            for when, of in (("before", self.before), ("after", self.after)):
                if of:
                    one[when] = {key: round(of[code][key], 4) for key in ("found", "error")}
            found[code or "unknown"] = one
        return found or None

    def table(self) -> str:
        """The same as text; empty if not measured."""
        lines = []
        for code, figures in (self.as_dict() or {}).items():
            parts = [
                f"{name} {figures[name]['found']:.0%}, error {figures[name]['error']:.3g}"
                for name in ("before", "after")
                if name in figures
            ]
            which = "held-out pairs" if figures["held_out"] else "pairs of the training text"
            lines.append(f"  {code:8} {'; '.join(parts)}; {figures['pairs']} {which}")
        head = "alignment: texts whose nearest reference is their own, and error (means over the aligned layers)"
        return "\n".join([head, *lines]) if lines else ""


class SampleAnswers(TrainerCallback):
    """At each evaluation, answer a few of its prompts in each language, greedily and as inference does.

    The answers go to RUN/samples.jsonl and, as text, to TensorBoard.
    """

    def __init__(self, trainer: Any, path: Path, each: int) -> None:
        """`path` is the file that lines are appended to, `each` the number of prompts per language."""
        self.trainer, self.path = trainer, path
        self.rows: list[dict[str, Any]] = []
        sets = trainer.eval_dataset
        counts: dict[str, int] = defaultdict(int)
        for dataset in sets.values() if isinstance(sets, dict) else [sets]:
            for row in dataset:
                if counts[row["lang"]] < each and any(label != -100 for label in row["labels"]):
                    counts[row["lang"]] += 1
                    self.rows.append(row)

    @torch.no_grad()
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer and write; random generators and the model's mode are restored."""
        if not state.is_world_process_zero:
            return
        trainer, tokenizer = self.trainer, self.trainer.processing_class
        lines = []
        with undisturbed(), evaluating(trainer.connected):
            for row in self.rows:
                labels = row["labels"]  # those before the prompt's end are of earlier turns
                end = max(place for place, label in enumerate(labels) if label == -100) + 1
                prompt, wanted = row["input_ids"][:end], labels[end:]
                ids = torch.tensor([prompt], device=args.device)
                options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False}
                with trainer.compute_loss_context_manager():
                    made = trainer.connected.generate(ids, torch.ones_like(ids), **options)[0, len(prompt) :]
                line = {"step": state.global_step, "lang": row["lang"], "prompt": tokenizer.decode(prompt)}
                for name, part in (("answer", made), ("expected", wanted)):
                    line[name] = tokenizer.decode(part, skip_special_tokens=True).strip()
                lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for board in trainer.callback_handler.callbacks:
            if getattr(board, "tb_writer", None) is not None:
                for number, line in enumerate(lines):
                    text = f"**{line['prompt']}**\n\n{line['answer']}\n\n(expected: {line['expected']})"
                    board.tb_writer.add_text(f"answers/{line['lang']}-{number}", text, state.global_step)


class BaseDecay(TrainerCallback):
    """w <- w - lr * decay * (w - w_0), after each optimizer step, for every trained weight w of the base.

    Decoupled, as in AdamW (Loshchilov and Hutter 2019), and towards the initial weights w_0, not zero (L2-SP: Li,
    Grandvalet and Davoine 2018, arXiv 1802.01483). `lr` is the step's learning rate, so the decay fades with the
    schedule; under Adam no weight moves much further than 1 / decay. With LoRA, w are its two factors, and B decays to
    0. The connection's weights do not decay.
    """

    def __init__(self, model: nn.Module, decay: float, later: bool = False) -> None:
        """`later`: copy the weights in `take` or when training begins, for they are not sharded yet."""
        self.model, self.decay = model, decay
        self.start: dict[str, Tensor] = {}
        if not later:
            self.take()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Copy the weights, if they had to be sharded first."""
        self.take()

    def take(self) -> None:
        """Copy the weights that train (of sharded ones, this process's shards), unless that has been done."""
        if self.start:
            return
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what FSDP2 keeps gathered after a forward is no shard
        self.start = {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and ATTRIBUTE not in name
        }

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the decay."""
        share = min(1.0, kwargs["optimizer"].param_groups[0]["lr"] * self.decay)
        for name, parameter in kwargs["model"].named_parameters():
            name = name.removeprefix("module.")
            if name in self.start:
                start = self.start[name] = self.start[name].to(parameter.device)
                parameter.lerp_(start, share)
