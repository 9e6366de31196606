"""Batches: each side padded to its own length, a shared reference once, the same keys whatever the rows."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import find_batch_size, send_to_device

from cctuning import UserError
from cctuning.data import PairedCollator


def row(number, length, reference):
    return {
        "input_ids": list(range(1, length + 1)),
        "labels": [-100] * (length - 1) + [length],
        "reference_input_ids": reference,
        "row": number,
        "lang": "sw",
    }


def test_padding_and_shared_references():
    batch = PairedCollator(0)([row(5, 3, [7, 8]), row(6, 1, []), row(9, 2, [9]), row(2, 2, [7, 8])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0], [1, 2, 0], [1, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [1, -100, -100], [-100, 2, -100], [-100, 2, -100]]
    assert batch["row"].tolist() == [5, 6, 9, 2]
    assert batch["reference_input_ids"].tolist() == [[7, 8], [9, 0]]
    assert batch["reference_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["reference_index"].tolist() == [0, -1, 1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_batch_without_references_has_the_same_keys():
    batch, other = PairedCollator(0)([row(0, 2, []), row(1, 3, [])]), PairedCollator(0)([row(0, 2, [1])])
    assert list(batch) == list(other)
    assert batch["reference_input_ids"].shape == (0, 1) and batch["reference_index"].tolist() == [-1, -1]
    moved = send_to_device(batch, "cpu")
    assert find_batch_size(moved) == 2  # of the first tensor: not the references'
    loader = torch.utils.data.DataLoader([row(i, 2, []) for i in range(3)], 2, collate_fn=PairedCollator(0))
    assert [len(batch["row"]) for batch in loader] == [2, 1]


def test_lengths_are_padded_to_a_multiple_each_by_itself():
    batch = PairedCollator(0, pad_to_multiple_of=8)([row(0, 9, [1, 2])])
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 16)
    assert batch["reference_input_ids"].shape == (1, 8) and batch["reference_attention_mask"].sum() == 2


def test_pad_may_be_a_token_of_the_text():
    batch = PairedCollator(2)([row(0, 2, [2, 2]), row(1, 1, [1])])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["reference_attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_tensors_are_taken_as_lists_are():
    one = row(3, 2, [4, 5])
    tensors = {key: torch.tensor(value) for key, value in one.items() if key != "lang"}
    batch, other = PairedCollator(0)([one]), PairedCollator(0)([tensors])
    assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_no_pad_token():
    with pytest.raises(UserError, match="no pad token"):
        PairedCollator(None)
