"""The last batch of an epoch over several processes, without the rows that accelerate repeats to fill it.

accelerate completes the last batches with rows from the epoch's beginning, so that every process has as many. Those
rows would be learnt from twice, and a run would depend on the number of its processes; so they are cut off again. A
process that is left with none keeps one row as a filler, whose loss is multiplied by zero: it has to take part in
what the others do together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

FILLER = "filler"  # key of a batch whose loss does not count
ROWWISE = ("input_ids", "attention_mask", "labels", "row", "text", "reference_index", "reference_row")
REFERENCES = ("reference_input_ids", "reference_attention_mask", "reference_text")


def without_repeats(
    batches: Iterator[dict[str, Any]], accelerator: Accelerator, length: int, each: int = 1
) -> Iterator[dict[str, Any]]:
    """The batches of `PairedCollator` that this process is given, the epoch's last without repeated rows.

    Args:
        length: rows of an epoch. each: rows of a batch that one of them stands for: with parallel text, itself and the
            pairs that follow it.
    """
    for batch in batches:
        yield cut(batch, each * own_rows(len(batch["input_ids"]) // each, accelerator, length))


def fillers_at_the_end(
    batches: Iterator[dict[str, Any]], accelerator: Accelerator, filler: bool
) -> Iterator[dict[str, Any]]:
    """The batches of a sampler that repeats no row; where `filler`, the last is one row that does not count."""
    for batch in batches:
        yield cut(batch, 0) if filler and accelerator.gradient_state.end_of_dataloader else batch


def own_rows(rows: int, accelerator: Accelerator, length: int) -> int:
    """How many of a batch's `rows` are no repetition. Process p is given the p-th of each round of batches."""
    # Not accelerate's own `remainder`: of an epoch that is entered in its middle it does not know it.
    remainder = length % (rows * accelerator.num_processes)
    if accelerator.num_processes == 1 or not accelerator.gradient_state.end_of_dataloader or remainder == 0:
        return rows
    return min(max(remainder - accelerator.process_index * rows, 0), rows)


def cut(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """The first `rows` rows of `batch`; of none, the first as a filler."""
    if rows == len(batch["input_ids"]):
        return batch
    own = batch | {key: batch[key][: max(rows, 1)] for key in ROWWISE if key in batch}
    if "reference_index" in batch:
        references = int(own["reference_index"].max()) + 1  # numbered in the order in which rows ask for them
        own |= {key: value[:references] for key, value in batch.items() if key in REFERENCES}
    if rows == 0:
        own |= {FILLER: True, "labels": torch.full_like(own["labels"], -100)}
    return own
