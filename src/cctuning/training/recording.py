"""Record the references of a run before its first step."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from cctuning.errors import UserError
from cctuning.model.recorded import INDEX, SAMPLE, Prompts, bytes_needed, cache_folder, fits, key, record
from cctuning.training.callbacks import AlignmentByLanguage, BaseDecay
from cctuning.training.launch import check_start
from cctuning.training.mixing import without_references
from cctuning.training.saving import SavingTrainer

logger = logging.getLogger(__name__)
FOLDER = "references"  # in a run whose weights are sharded
TRIED = 32  # references of a dry run, besides those of its batches


class RecordingTrainer(SavingTrainer):
    """A `SavingTrainer` that records the references, and keeps the initial weights, before training.

    Attributes:
        records: whether the references are recorded, or run in every step.
        by_language: the alignment of recorded parallel text; None if there is none, or weights are sharded.
    """

    records: bool = False
    by_language: AlignmentByLanguage | None = None

    def prepare_references(self, has_parallel: bool) -> None:
        """Number the references of the rows, and add the callbacks that need them or the initial weights."""
        connected, sharded = self.connected, self.is_fsdp_enabled or self.is_deepspeed_enabled
        if connected.config.connection in ("align", "gated"):
            if self.args.align_first and not self.args.parallel_rows and connected.aligned:
                self.train_dataset = without_references(cast(Dataset, self.train_dataset))
            parts: dict[str, Any] = {"train": self.train_dataset, "parallel": self.parallel}
            sets = record_references(self, {name: part for name, part in parts.items() if part is not None})
            if sets is not None:
                self.records, self.train_dataset, self.parallel = True, sets["train"], sets.get("parallel")
        if self.records and connected.aligned and has_parallel and not sharded:
            self.by_language = AlignmentByLanguage(
                self, self.train_dataset if self.parallel is None else self.parallel
            )
            self.add_callback(self.by_language)
        wanted, decay = connected.config.reference_weights, self.args.base_decay
        check_start(decay, wanted, self.is_deepspeed_enabled)
        if decay:
            self._decay = BaseDecay(self.model, decay, later=self.is_fsdp_enabled)
            self.add_callback(self._decay)

    def make_recording(self) -> None:
        """Record before a checkpoint is loaded; weights that are to be sharded are not there yet."""
        if self.recording is not None and not self.recording.sharded:
            self.recording.make()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the parent's; references are recorded before."""
        self.make_recording()
        return super().evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; references are recorded before."""
        self.make_recording()
        return super().train(*args, **kwargs)


def record_references(trainer: RecordingTrainer, sets: dict[str, Dataset]) -> dict[str, Dataset] | None:
    """Plan the recording of the distinct references of `sets` (encoded), or log why they are not recorded.

    Nothing runs yet: `trainer.recording` is made when training starts, before a checkpoint is loaded.

    Returns:
        The sets with a column `reference_row`; None if the references run in every step.
    """
    why = _why_not(trainer)
    prompts, rows = distinct(sets)
    if why is None and not len(prompts):
        why = ""  # nothing to record, and nothing to log
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    folder = Path(str(trainer.args.output_dir)) / FOLDER if sharded else cache_folder()
    if why is None:
        why = fits(trainer.connected, len(prompts), folder)
    if why is not None and trainer.args.record_references == "true":
        raise UserError(f"record_references: true: {why or 'no row has a reference'}; set it to auto or false.")
    if why:
        logger.warning(f"references run in every step, through the current weights, and are not recorded: {why}.")
        trainer.connected.config = replace(trainer.connected.config, reference_weights="current")
    if why is not None and len(prompts) and trainer.connected.config.loss == "contrastive":
        logger.warning(
            "align_loss: contrastive compares a row with the references of its own batch and process only, as "
            "references are not recorded; use large batches, or align_loss: standardized."
        )
    if why is None or trainer.connected.config.loss != "relative":
        trainer.recording = Recording(trainer, prompts, folder, whole=why is None, sharded=sharded)
        trainer.add_callback(trainer.recording)
    if why is not None:
        return None
    return {name: part.add_column("reference_row", rows[name]) for name, part in sets.items()}


class Recording(TrainerCallback):
    """The recording of a run's references.

    Attributes:
        done: whether it has been made.
    """

    def __init__(self, trainer: RecordingTrainer, prompts: Prompts, folder: Path, whole: bool, sharded: bool) -> None:
        """`whole`: not only the statistics of a sample; `sharded`: the weights are, when training begins."""
        self.trainer, self.prompts, self.folder, self.whole, self.sharded = trainer, prompts, folder, whole, sharded
        self.done = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Record through weights that have just been sharded; others were recorded before."""
        self.make()

    def make(self) -> None:
        """Record, unless it has been done."""
        if self.done or not len(self.prompts):
            return
        self.done = True
        trainer, prompts = self.trainer, self.prompts
        options: dict[str, Any] = {"folder": None}
        if self.whole:
            ours = {"rank": trainer.args.process_index, "world": trainer.args.world_size, "collective": self.sharded}
            options = {**ours, "folder": self.folder, "precision": _precision(trainer)}
            logger.info(f"recording {self._size()} in {self.folder}")
        else:
            prompts = prompts.of(list(range(0, len(prompts), max(1, len(prompts) // SAMPLE)))[:SAMPLE])
        started = time.time()
        trainer.connected.keep_recorded(self._record(prompts, **options), references=self.whole)
        if self.whole:
            logger.info(f"recorded {len(prompts):,} references in {time.time() - started:.1f} s")

    def try_out(self, batches: Sequence[dict[str, Any]]) -> str:
        """Record the references of `batches` and a few others, in memory, for a dry run.

        `reference_row` of the batches is numbered accordingly.

        Returns:
            What recording all of them would take.
        """
        if not len(self.prompts):
            return ""
        given = [batch["reference_row"] for batch in batches if "reference_row" in batch]
        spread = torch.linspace(0, len(self.prompts) - 1, min(TRIED, len(self.prompts))).long()
        numbers = torch.cat([spread, *(rows[rows >= 0] for rows in given)]).unique()
        sample = self.prompts.of(numbers.tolist())
        self.trainer.connected.keep_recorded(self._record(sample, folder=None), references=self.whole)
        if not self.whole:
            return f"statistics of {min(SAMPLE, len(self.prompts)):,} references are measured before the first step"
        for batch in batches:
            batch["reference_row"] = _renumbered(batch["reference_row"], numbers)
        if not self.sharded:
            there = self.folder / key(self.trainer.connected, self.prompts, _precision(self.trainer))
            if (there / INDEX).is_file():
                return f"{self._size()}, recorded in {there}"
        started = time.perf_counter()
        self._record(sample, folder=None)  # timed; the first also warmed up
        needed = (time.perf_counter() - started) / max(1, self.trainer.args.world_size)
        needed *= sum(map(len, self.prompts.ids)) / max(1, sum(map(len, sample.ids)))
        return f"{self._size()}, to be recorded in {self.folder} before the first step: about {needed:.3g} s"

    def _record(self, prompts: Prompts, **options: Any) -> Any:
        tokenizer = cast(Any, self.trainer.processing_class)
        with self.trainer.accelerator.autocast():
            return record(self.trainer.connected, prompts, pad=tokenizer.pad_token_id, **options)

    def _size(self) -> str:
        size, tokens = bytes_needed(self.trainer.connected, len(self.prompts)) / 1e6, sum(map(len, self.prompts.ids))
        return f"{len(self.prompts):,} references ({tokens:,} tokens, {size:,.0f} MB)"


def _renumbered(rows: Tensor, numbers: Tensor) -> Tensor:
    """`rows`, -1 or one of the sorted `numbers`, as places among the latter."""
    return torch.where(rows >= 0, torch.searchsorted(numbers, rows.clamp(min=int(numbers[0]))), rows)


def distinct(sets: dict[str, Dataset]) -> tuple[Prompts, dict[str, list[int]]]:
    """The distinct references, shortest first, and for each set the number of each row's reference, -1 for none."""
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


def _why_not(trainer: RecordingTrainer) -> str | None:
    config, option = trainer.connected.config, trainer.args.record_references
    if config.reference_weights != "start":
        return "reference_weights is not start" if option == "true" else ""
    if option == "false" or not config.recordable:
        why = "record_references: false" if option == "false" else f"alignment: {config.alignment} keeps every token"
        raise UserError(f"reference_weights: start needs recorded references ({why}); set reference_weights: current.")
    return None


def _precision(trainer: RecordingTrainer) -> str:
    return f"{trainer.accelerator.mixed_precision} {next(trainer.model.parameters()).dtype}"
