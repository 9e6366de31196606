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
from cctuning.model.recorded import INSTEAD, VECTORS, Prompts, bytes_of, cache_folder, fits, key, record, shape_of
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

    Nothing runs yet: the recording is made when training starts, before a checkpoint is loaded.
    """
    trainer.recording, numbers = _plan(trainer)
    if trainer.recording is not None:
        trainer.add_callback(trainer.recording)
    if numbers is None:  # references run in every step
        return
    rows = cast(Dataset, trainer.train_dataset)
    trainer.records = True
    trainer.train_dataset = rows.add_column("reference_row", numbers[: len(rows)])
    if trainer.parallel is not None:
        trainer.parallel = trainer.parallel.add_column("reference_row", numbers[len(rows) :])
    if trainer.connected.aligned and has_parallel:
        trainer.by_language = AlignmentByLanguage(trainer)
        trainer.add_callback(trainer.by_language)


def _plan(trainer: CCTrainer) -> tuple[Recording | None, list[int] | None]:
    """The recording of the distinct references that a run reads, None if there is nothing to record; and the reference
    of each row of the table, -1 for none, UNREAD for rows that the run does not read, None if references are not
    recorded."""
    table = trainer.table
    read = trainer.schedule().rows_read(trainer.planned_steps())
    if len(read) < len(table):
        read = sorted({*read, *range(0, len(table), max(1, len(table) // OTHERS))})
    prompts, numbers = distinct(table if len(read) == len(table) else table.select(read))
    why = _why_not(trainer)
    if why is None and not len(prompts):
        why = ""  # nothing to record, and nothing to log
    recording = Recording(trainer, prompts)
    if why is None:
        recording.find_room()
    elif trainer.args.record_references == "true":
        raise UserError(f"record_references: true: {why or 'no row has a reference'}; set it to auto or false.")
    loss = trainer.connected.config.loss
    if why is not None and len(prompts) and loss == "contrastive":
        logger.warning(
            "align_loss: contrastive compares a row with the references of its own batch and process only, as "
            "references are not recorded; use large batches, or align_loss: standardized."
        )
    if why is not None and (loss == "relative" or not len(prompts)):
        return None, None
    if why is not None:
        recording.whole = False
        return recording, None
    rows = [UNREAD] * len(table)
    for place, number in zip(read, numbers, strict=True):
        rows[place] = number
    recording.rows = len(table) - rows.count(UNREAD)
    return recording, rows


class Recording(TrainerCallback):
    """The recording of a run's references.

    Attributes:
        done: whether it has been made. whole: not only the statistics of a sample.
        in_memory: it is not kept on the disk.
        rows: number of rows of the table whose references are recorded.
        sharded: the weights are, when training begins. dtype: of the vectors.
    """

    rows = 0
    whole = True
    in_memory = False
    done = False

    def __init__(self, trainer: CCTrainer, prompts: Prompts) -> None:
        self.trainer, self.prompts = trainer, prompts
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
        shape = shape_of(self.trainer.connected, len(self.prompts))
        problem = fits(self.file(), shape, self.dtype)
        if problem is None:
            return
        # A resumed run of sharded weights could not record again.
        if self.sharded or bytes_of(shape, self.dtype) > RESIDENT:
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
        options: dict[str, Any] = {}
        file = self.file() if self.whole and not self.in_memory else None
        loaded = trainer.is_deepspeed_enabled and trainer.state.global_step > 0  # DeepSpeed loads checkpoints before
        if loaded and file is not None and not file.is_file():
            raise UserError(
                f"{file.parent}: the references that the run recorded are gone, and DeepSpeed's checkpoint does not "
                "hold the weights that they are of; put the folder back, or start the run again."
            )
        if file is not None:
            options = {
                "rank": trainer.args.process_index,
                "world": trainer.args.world_size,
                "collective": self.sharded,
            }
            logger.info(f"recording {self.size()} in {file.parent}")
        elif not self.whole:
            prompts = prompts.of(list(range(0, len(prompts), max(1, len(prompts) // SAMPLE)))[:SAMPLE])
        started = time.time()
        trainer.connected.keep_recorded(self._record(prompts, file=file, **options), references=self.whole)
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
        self.trainer.connected.keep_recorded(self._record(sample, file=None), references=self.whole)
        if not self.whole:
            return f"statistics of {min(SAMPLE, len(self.prompts)):,} references are measured before the first step"
        for batch, rows in zip(batches, given, strict=True):
            batch["reference_row"] = torch.where(rows >= 0, torch.searchsorted(numbers, rows), rows)
        file = self.file()
        if not self.sharded and file.is_file():
            return f"{self.size()}, recorded in {file.parent}"
        place = "memory" if self.in_memory else file.parent
        started = time.perf_counter()
        self._record(sample, file=None)  # timed; the first also warmed up
        needed = (time.perf_counter() - started) / max(1, self.trainer.args.world_size)
        needed *= sum(map(len, self.prompts.ids)) / max(1, sum(map(len, sample.ids)))
        return f"{self.size()}, to be recorded in {place} before the first step: about {needed:.3g} s"

    def _record(self, prompts: Prompts, **options: Any) -> Any:
        tokenizer = cast(Any, self.trainer.processing_class)
        with self.trainer.accelerator.autocast():
            return record(self.trainer.connected, prompts, pad=tokenizer.pad_token_id, dtype=self.dtype, **options)

    def size(self) -> str:
        """Number and size of the references, and which they are."""
        size, tokens = (
            bytes_of(shape_of(self.trainer.connected, len(self.prompts)), self.dtype) / 1e6,
            sum(map(len, self.prompts.ids)),
        )
        table = len(self.trainer.table)
        few = f" of {self.rows:,} of {table:,} rows, all that the run reads and a sample" if self.rows < table else ""
        return f"{len(self.prompts):,} references{few} ({tokens:,} tokens, {size:,.0f} MB)"


def distinct(rows: Dataset) -> tuple[Prompts, list[int]]:
    """The distinct references of encoded rows, shortest first, and the number of each row's, -1 for none."""
    found: dict[tuple[bytes, bytes], tuple[Any, Any]] = {}
    names: list[tuple[bytes, bytes] | None] = []
    columns = rows.select_columns(["reference_input_ids", "reference_text"]).with_format("numpy")
    for batch in columns.iter(1000):
        for ids, text in zip(batch["reference_input_ids"], batch["reference_text"], strict=True):
            name = (ids.tobytes(), text.tobytes()) if len(ids) else None
            names.append(name)
            if name is not None:
                found.setdefault(name, (ids, text))
    order = sorted(found, key=lambda name: (len(found[name][0]), found[name][0].tolist()))
    numbers = {name: number for number, name in enumerate(order)}
    texts = torch.tensor([list(found[name][1]) for name in order], dtype=torch.long).reshape(-1, 2)
    return Prompts([found[name][0].tolist() for name in order], texts), [
        -1 if name is None else numbers[name] for name in names
    ]


def _why_not(trainer: CCTrainer) -> str | None:
    config, option = trainer.connected.config, trainer.args.record_references
    if config.reference_weights != "start":
        return "reference_weights is not start" if option == "true" else ""
    if option == "false" or not config.recordable:
        why = "record_references: false" if option == "false" else f"alignment: {config.alignment} keeps every token"
        raise UserError(f"reference_weights: start needs recorded references ({why}); set reference_weights: current.")
    return None
