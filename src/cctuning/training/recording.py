"""Record the references of a run before its first step."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from transformers import TrainerCallback

from cctuning.connection.align import RESIDENT
from cctuning.errors import UserError
from cctuning.model.recorded import INSTEAD, VECTORS, Prompts, bytes_of, cache_folder, distinct, fits, key
from cctuning.training.callbacks import AlignmentByLanguage

if TYPE_CHECKING:
    from cctuning.training.trainer import CCTrainer

logger = logging.getLogger(__name__)
FOLDER = "references"  # in a run whose weights are sharded
OTHERS = 256  # references of rows that a short run does not read: for statistics, and to tell a reference from
SAMPLE = 1024  # references that statistics are taken from where nothing is recorded
TRIED = 32  # references of a dry run, besides those of its batches
UNREAD = -2  # in reference_row: not recorded, as the run does not read the row


def prepare_references(trainer: CCTrainer, has_parallel: bool) -> None:
    """Number the references of the rows and plan their recording, or log why they are not recorded.

    Nothing runs yet: the recording is made when training starts, before a checkpoint is loaded. `reference_row` of a
    row is the number of its reference, -1 for none, UNREAD if the run does not read the row.
    """
    config, option, table = trainer.connected.config, trainer.args.record_references, trainer.table
    records = config.reference_weights == "start"
    if records and (option == "false" or not config.recordable):
        why = "record_references: false" if option == "false" else f"alignment: {config.alignment} keeps every token"
        raise UserError(f"reference_weights: start needs recorded references ({why}); set reference_weights: current.")
    read = trainer.schedule().rows_read(trainer.planned_steps())
    if len(read) < len(table):
        read = sorted({*read, *range(0, len(table), max(1, len(table) // OTHERS))})
    prompts, numbers = distinct(table if len(read) == len(table) else table.select(read))
    if option == "true" and not (records and len(prompts)):
        why = "no row has a reference" if records else "reference_weights is not start"
        raise UserError(f"record_references: true: {why}; set it to auto or false.")
    if not len(prompts):
        return
    if not records and config.loss == "contrastive":
        logger.warning(
            "align_loss: contrastive compares a row with the references of its own batch and process only, as "
            "references are not recorded; use large batches, or align_loss: standardized."
        )
    if not records and config.loss == "relative":
        return
    recording = trainer.recording = Recording(trainer, prompts, whole=records)
    trainer.add_callback(recording)
    if not records:
        return
    recording.find_room()
    numbered = dict(zip(read, numbers, strict=True))
    recording.rows = len(numbered)
    rows = [numbered.get(row, UNREAD) for row in range(len(table))]
    answered = cast(Dataset, trainer.train_dataset)
    trainer.train_dataset = answered.add_column("reference_row", rows[: len(answered)])
    if trainer.parallel is not None:
        trainer.parallel = trainer.parallel.add_column("reference_row", rows[len(answered) :])
    if trainer.connected.aligned and has_parallel:
        trainer.by_language = AlignmentByLanguage(trainer)
        trainer.add_callback(trainer.by_language)


class Recording(TrainerCallback):
    """The recording of a run's references.

    Attributes:
        whole: not only the statistics of a sample. done: whether it has been made.
        in_memory: it is not kept on the disk.
        rows: number of rows of the table whose references are recorded.
        sharded: the weights are, when training begins. dtype: of the vectors.
    """

    rows = 0
    in_memory = False
    done = False

    def __init__(self, trainer: CCTrainer, prompts: Prompts, whole: bool = True) -> None:
        self.trainer, self.prompts, self.whole = trainer, prompts, whole
        self.shape = len(prompts), len(trainer.connected.layers), trainer.connected.width
        self.sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        given, arithmetic = trainer.args.record_dtype, trainer.accelerator.mixed_precision
        half = arithmetic == "bf16" or next(trainer.model.parameters()).dtype == torch.bfloat16
        self.dtype = torch.bfloat16 if given == "bfloat16" or (given == "auto" and half) else torch.float32

    def file(self) -> Path:
        """Where it is kept: in the run if weights are sharded, which are then no part of its name."""
        trainer, sharded = self.trainer, self.sharded
        folder = Path(str(trainer.args.output_dir)) / FOLDER if sharded else cache_folder()
        precision = (
            f"{trainer.accelerator.mixed_precision} {None if sharded else next(trainer.model.parameters()).dtype}"
        )
        if self.dtype != torch.float32:  # the names of fp32 recordings stay as they were
            precision += f" in {self.dtype}"
        return folder / key(trainer.connected, self.prompts, precision, weights=not sharded) / VECTORS

    def find_room(self) -> None:
        """Keep the recording in memory if the disk has no room for it; `UserError` if it is too large for that."""
        problem = fits(self.file(), self.shape, self.dtype)
        if problem is None:
            return
        # A resumed run of sharded weights could not record again.
        if self.sharded or bytes_of(self.shape, self.dtype) > RESIDENT:
            raise UserError(f"record_references: {problem}. {INSTEAD}")
        self.in_memory = True
        logger.warning(f"the recording of the references is kept in memory, for this run alone: {problem}.")

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Record through weights that have just been sharded; others were recorded before."""
        self.make()

    def make(self) -> None:
        """Record, unless it has been done."""
        if self.done:
            return
        self.done = True
        trainer, prompts = self.trainer, self.prompts
        options: dict[str, Any] = {"dtype": self.dtype}
        file = self.file() if self.whole and not self.in_memory else None
        loaded = trainer.is_deepspeed_enabled and trainer.state.global_step > 0  # DeepSpeed loads checkpoints before
        if loaded and file is not None and not file.is_file():
            raise UserError(
                f"{file.parent}: the references that the run recorded are gone, and DeepSpeed's checkpoint does not "
                "hold the weights that they are of; put the folder back, or start the run again."
            )
        if file is not None:
            options |= {"file": file, "rank": trainer.args.process_index, "world": trainer.args.world_size}
            options["collective"] = self.sharded
            logger.info(f"recording {self.size()} in {file.parent}")
        elif not self.whole:
            prompts = prompts.of(list(range(0, len(prompts), max(1, len(prompts) // SAMPLE)))[:SAMPLE])
        started = time.time()
        trainer.connected.keep_recorded(trainer.record(prompts, **options), references=self.whole)
        if self.whole:
            logger.info(f"recorded {len(prompts):,} references in {time.time() - started:.1f} s")
            if trainer.by_language is not None and not loaded:
                trainer.by_language.record()

    def try_out(self, batches: Sequence[dict[str, Any]]) -> str:
        """Record the references of `batches` and a few others, in memory, for a dry run.

        `reference_row` of the batches is numbered accordingly.

        Returns:
            What recording all of them would take.
        """
        given = [batch["reference_row"] for batch in batches if "reference_row" in batch]
        spread = torch.linspace(0, len(self.prompts) - 1, min(TRIED, len(self.prompts))).long()
        numbers = torch.cat([spread, *(rows[rows >= 0] for rows in given)]).unique()
        sample = self.prompts.of(numbers.tolist())
        self.trainer.connected.keep_recorded(self.trainer.record(sample), references=self.whole)
        if not self.whole:
            return f"statistics of {min(SAMPLE, len(self.prompts)):,} references are measured before the first step"
        for batch, rows in zip(batches, given, strict=True):
            batch["reference_row"] = torch.where(rows >= 0, torch.searchsorted(numbers, rows), rows)
        file = self.file()
        if not self.sharded and file.is_file():
            return f"{self.size()}, recorded in {file.parent}"
        place = "memory" if self.in_memory else file.parent
        started = time.perf_counter()
        self.trainer.record(sample)  # timed; the first also warmed up
        needed = (time.perf_counter() - started) / max(1, self.trainer.args.world_size)
        needed *= sum(map(len, self.prompts.ids)) / max(1, sum(map(len, sample.ids)))
        return f"{self.size()}, to be recorded in {place} before the first step: about {needed:.3g} s"

    def size(self) -> str:
        """Number and size of the references, and which they are."""
        size, tokens = bytes_of(self.shape, self.dtype) / 1e6, sum(map(len, self.prompts.ids))
        table = len(self.trainer.table)
        few = f" of {self.rows:,} of {table:,} rows, all that the run reads and a sample" if self.rows < table else ""
        return f"{len(self.prompts):,} references{few} ({tokens:,} tokens, {size:,.0f} MB)"
