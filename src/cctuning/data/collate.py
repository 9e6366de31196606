"""Collate encoded rows; prompts and references are padded separately, and a shared reference is kept once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cctuning.errors import UserError


@dataclass
class PairedCollator:
    """Collates rows of `encode_dataset`.

    Attributes:
        pad_token_id: fills the padding; attention masks and labels mark it, not the id.
        pad_to_multiple_of: pad lengths up to a multiple of this.

    A call returns int64 tensors, padded on the right: `input_ids`, `attention_mask`, `labels` (B, T); `row` (B,);
    `text` (B, 2); `reference_input_ids`, `reference_attention_mask` (R, S) and `reference_text` (R, 2) over the
    batch's distinct references, and `reference_index` (B,), each row's reference among them, -1 for none. Where no
    row has one, R is 0 and S is 1, so that every batch has the same keys. Rows with recorded references have
    `reference_row` instead: the batch then holds that (B,) in place of the references. `input_ids` comes first,
    because accelerate takes the batch size from the first tensor.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise UserError("the tokenizer has no pad token; set its pad_token (its eos token will do).")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        input_ids, mask = self._pad([row["input_ids"] for row in rows], self.pad_token_id)
        labels, _ = self._pad([row["labels"] for row in rows], -100)
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "labels": labels,
            "row": torch.tensor([int(row.get("row", -1)) for row in rows]),
        }
        known = all(row.get("text") is not None for row in rows)
        if known:
            batch["text"] = _spans(row["text"] for row in rows)
        if "reference_row" in rows[0]:
            return batch | {"reference_row": torch.tensor([int(row["reference_row"]) for row in rows])}
        references: dict[tuple[int, ...], int] = {}
        texts: list[Sequence[int]] = []
        index = []
        for row in rows:
            given = row.get("reference_input_ids")
            reference = () if given is None else tuple(int(token) for token in given)
            if reference and reference not in references:
                texts.append(row.get("reference_text") or [])
            index.append(references.setdefault(reference, len(references)) if reference else -1)
        reference_ids, reference_mask = self._pad(list(references), self.pad_token_id)
        if known:
            batch["reference_text"] = _spans(texts)
        return batch | {
            "reference_input_ids": reference_ids,
            "reference_attention_mask": reference_mask,
            "reference_index": torch.tensor(index),
        }

    def _pad(self, sequences: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
        multiple = self.pad_to_multiple_of or 1
        width = -(-max(map(len, sequences), default=1) // multiple) * multiple
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.long)
        rows = [[*sequence, *[fill] * (width - len(sequence))] for sequence in sequences]
        mask = torch.arange(width) < lengths[:, None]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, width), mask.long()


def _spans(spans: Iterable[Sequence[int]]) -> Tensor:
    return torch.tensor([list(span) for span in spans], dtype=torch.long).reshape(-1, 2)
