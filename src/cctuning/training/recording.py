"""Before the first step: which references there are, what they offer, and which row has which."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from transformers import TrainerCallback

from cctuning.connection.references import ALIGNMENTS
from cctuning.errors import UserError
from cctuning.model.recorded import (
    SAMPLE,
    Prompts,
    bytes_needed,
    cache_folder,
    fits,
    record,
)

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

logger = logging.getLogger(__name__)
FOLDER = "references"  # in a run whose weights are sharded


def record_references(trainer: CCTrainer, sets: dict[str, Dataset]) -> dict[str, Dataset] | None:
    """Record the distinct references of `sets` (encoded) for `trainer.connected`, or say why not.

    Where the weights are to be sharded it is done when they have been, before the first step or the checkpoint.

    Returns:
        The sets with a column `reference_row`; None where the references are to run in every step.

    Raises:
        UserError: `record_references: true`, and they cannot be.
    """
    why = _why_not(trainer)
    prompts, rows = distinct(sets)
    if why is None and not len(prompts):
        why = ""  # nothing to record, and nothing to say
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    folder = Path(str(trainer.args.output_dir)) / FOLDER if sharded else cache_folder()
    if why is None:
        why = fits(trainer.connected, len(prompts), folder)
    if why is not None and trainer.args.record_references == "true":
        raise UserError(f"record_references: true: {why or 'no row has a reference'}; set it to auto or false.")
    if why:
        logger.warning(f"references run in every step and are not recorded: {why}.")
    if why is None or trainer.connected.config.loss != "relative":
        recording = Recording(trainer, prompts, folder, whole=why is None, sharded=sharded)
        trainer.recording = recording
        if sharded:
            trainer.add_callback(recording)
        else:
            recording.make()
    return (
        None
        if why is not None
        else {name: part.add_column("reference_row", rows[name]) for name, part in sets.items()}
    )


class Recording(TrainerCallback):
    """One recording, made when its weights are there."""

    def __init__(self, trainer: CCTrainer, prompts: Prompts, folder: Path, whole: bool, sharded: bool) -> None:
        """
        Args:
            prompts: distinct references. folder: where they are kept.
            whole: False: only the statistics are wanted, from a sample. sharded: weights are.
        """
        self.trainer, self.prompts, self.folder, self.whole, self.sharded = trainer, prompts, folder, whole, sharded
        self.done = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Sharded weights are there now."""
        self.make()

    def make(self) -> None:
        """Record, unless it has been done."""
        if self.done or not len(self.prompts):
            return
        self.done = True
        trainer, prompts = self.trainer, self.prompts
        connected, tokenizer = trainer.connected, cast(Any, trainer.processing_class)
        options: dict[str, Any] = {"pad": tokenizer.pad_token_id, "folder": None}
        if self.whole:
            ours = {"rank": trainer.args.process_index, "world": trainer.args.world_size, "collective": self.sharded}
            options |= {**ours, "folder": self.folder, "precision": _precision(trainer)}
            size, tokens = bytes_needed(connected, len(prompts)) / 1e6, sum(map(len, prompts.ids))
            logger.info(f"recording {len(prompts):,} references ({tokens:,} tokens; {size:,.0f} MB) in {self.folder}")
        else:
            prompts = prompts.of(list(range(0, len(prompts), max(1, len(prompts) // SAMPLE)))[:SAMPLE])
        started = time.time()
        with trainer.accelerator.autocast():
            recorded = record(connected, prompts, **options)
        connected.keep_recorded(recorded, references=self.whole)
        if self.whole:
            logger.info(f"recorded {len(prompts):,} references in {time.time() - started:.1f} s")


def distinct(sets: dict[str, Dataset]) -> tuple[Prompts, dict[str, list[int]]]:
    """The distinct references, shortest first, and of each set the number of each row's reference, -1 for none."""
    met: dict[tuple[bytes, bytes], int] = {}
    found: list[tuple[Any, Any]] = []
    rows: dict[str, list[int]] = {}
    for name, part in sets.items():
        rows[name] = []
        columns = part.select_columns(["reference_input_ids", "reference_text"]).with_format("numpy")
        for batch in columns.iter(1000):
            for ids, text in zip(batch["reference_input_ids"], batch["reference_text"], strict=True):
                if not len(ids):
                    rows[name].append(-1)
                    continue
                number = met.setdefault((ids.tobytes(), text.tobytes()), len(found))
                if number == len(found):
                    found.append((ids, text))
                rows[name].append(number)
    order = sorted(range(len(found)), key=lambda number: (len(found[number][0]), found[number][0].tolist()))
    place = {number: new for new, number in enumerate(order)} | {-1: -1}
    text = torch.tensor([list(found[number][1]) for number in order], dtype=torch.long).reshape(-1, 2)
    prompts = Prompts([found[number][0].tolist() for number in order], text)
    return prompts, {name: [place[number] for number in numbers] for name, numbers in rows.items()}


def _why_not(trainer: CCTrainer) -> str | None:
    config, args = trainer.connected.config, trainer.args
    if args.record_references == "false":
        return ""
    if config.reference_weights != "start":
        return "" if args.record_references == "auto" else "reference_weights is not start"
    if config.connection == "gated" and not ALIGNMENTS[config.alignment].recordable:
        return f"alignment: {config.alignment} keeps every token of a reference"
    return None


def _precision(trainer: CCTrainer) -> str:
    return f"{trainer.accelerator.mixed_precision} {next(trainer.model.parameters()).dtype}"
