"""What an alignment has moved, language by language: before the first step, when training ends, and a word in between.

A sample of the parallel text itself is measured, some 64 pairs a language: it says whether anything moves, not whether
the model answers better. That is what `cctuning evaluate` is for.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from cctuning.analysis.alignment import Alignment, measure
from cctuning.model.recorded import Prompts

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

logger = logging.getLogger(__name__)
PAIRS = 64  # a language
LOOK_AT = 50  # step at which an alignment that has not moved is said
MOVED = 0.02  # of the first error


class AlignmentByLanguage(TrainerCallback):
    """Measures before and after, and warns once where the error stands still.

    Attributes:
        before, after: of the sample; None until measured (`before` of a resumed run is the start's, by the recording).
    """

    def __init__(self, trainer: CCTrainer, rows: Any) -> None:
        """
        Args:
            rows: encoded parallel text with `reference_row`.
        """
        self.trainer = trainer
        self.before: Alignment | None = None
        self.after: Alignment | None = None
        taken: dict[str, list[int]] = defaultdict(list)
        for number, (lang, reference) in enumerate(zip(rows["lang"], rows["reference_row"], strict=True)):
            if reference >= 0 and lang != trainer.args.reference_language:
                taken[lang].append(number)
        chosen = [places[:: math.ceil(len(places) / PAIRS)] for places in taken.values()]
        sample = rows.select([place for places in chosen for place in places])
        self._texts = Prompts(sample["input_ids"][:], torch.tensor(sample["text"][:]).reshape(-1, 2))
        self._which, self._languages = torch.tensor(sample["reference_row"][:]), list(sample["lang"])
        self._losses: list[float] = []
        self._warned = False

    def _measure(self) -> Alignment | None:
        if not self._languages:
            return None
        tokenizer: Any = self.trainer.processing_class
        with self.trainer.accelerator.autocast():
            return measure(self.trainer.connected, self._texts, self._which, self._languages, tokenizer.pad_token_id)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is measured of a run that is resumed: its weights are not the start's."""
        if state.global_step == 0:
            self.before = self._measure()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn by step 50 where the error has not fallen."""
        logs = kwargs["logs"]
        if "align_loss" in logs:
            self._losses.append(float(logs["align_loss"]))
        if state.global_step >= LOOK_AT and len(self._losses) >= 2 and not self._warned:
            self._warned = True
            first, last = self._losses[0], sum(self._losses[-3:]) / len(self._losses[-3:])
            if last > (1 - MOVED) * first:
                logger.warning(
                    f"alignment error {first:.3g} at the first log, {last:.3g} by step {state.global_step}: it does "
                    "not fall; raise learning_rate or align_weight, or see cctuning diagnose."
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure again, and log both."""
        self.after = self._measure()

    def as_dict(self) -> dict[str, Any] | None:
        """Language -> pairs, and found and error (mean over layers) before and after; None where not measured."""
        if self.after is None:
            return None
        found: dict[str, Any] = {}
        for number, code in enumerate(self.after.languages):
            found[code] = {"pairs": self.after.pairs[number]}
            for name, one in (("before", self.before), ("after", self.after)):
                if one is not None:
                    figures = {"found": one.found[number], "error": one.error[number]}
                    found[code][name] = {key: round(float(value.mean()), 4) for key, value in figures.items()}
        return found

    def table(self) -> str:
        """The same as text; empty where not measured."""
        lines = []
        for code, figures in (self.as_dict() or {}).items():
            parts = [f"{name} {figures[name]['found']:.0%}" for name in ("before", "after") if name in figures]
            lines.append(f"  {code:8} {', '.join(parts)} of {figures['pairs']} found")
        head = "alignment: texts whose nearest reference is their own (mean over the aligned layers)"
        return "\n".join([head, *lines]) if lines else ""
