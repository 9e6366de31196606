"""The English hint: `generate` over the live connection, for batches in which some rows have a reference.

Batched, left-padded, with a cache of keys and values: each row must come out as if it were alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from cctuning import ConnectedModel, ConnectionConfig
from tests.conftest import shake, tiny_llama
from tests.families import build

STEPS = 6
OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, "output_logits": True}
DRAW = torch.Generator().manual_seed(5)
PROMPTS = [torch.randint(3, 64, (length,), generator=DRAW) for length in (7, 4, 6, 5)]
REFERENCES = [torch.randint(3, 64, (length,), generator=DRAW) for length in (4, 30)]  # the second: a few examples
MIXED = (1, -1, 0, -1)  # each row's reference
SCOPES = [
    {"scope": "all"},
    {"scope": "all", "fusion_scope": "prompt_end"},
    {"scope": "prompt_end"},
    {"scope": "response"},
]


def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of uneven length."""
    width = max(map(len, rows))
    sides = [(width - len(row), 0) if left else (0, width - len(row)) for row in rows]
    ids = torch.stack([pad(row, side) for row, side in zip(rows, sides, strict=True)])
    mask = torch.stack([pad(torch.ones_like(row), side) for row, side in zip(rows, sides, strict=True)])
    return ids, mask


def gated(**options: Any) -> ConnectedModel:
    connected = ConnectedModel.attach(tiny_llama(), ConnectionConfig(**{"connection": "gated", **options})).eval()
    shake(connected, 0.5)
    return connected


def adaptive(batch: dict[str, Tensor]) -> ConnectedModel:
    connected = ConnectedModel.attach(tiny_llama(), ConnectionConfig(connection="adaptive")).eval()
    torch.manual_seed(3)
    connected.adaptive.selector.weight.data.normal_(std=5.0)
    connected.fit_transform([batch])
    return connected


def answer(
    connected: ConnectedModel, rows: list[int], which: tuple[int, ...], left: bool = False, **more: Any
) -> tuple[Tensor, Tensor]:
    """Tokens (R, STEPS) and logits (R, STEPS, V) for PROMPTS `rows`, with the REFERENCES that `which` says."""
    ids, mask = padded([PROMPTS[row] for row in rows], left=True)
    wanted = sorted({number for number in which if number >= 0})
    if wanted:
        more["reference_input_ids"], more["reference_attention_mask"] = padded([REFERENCES[i] for i in wanted], left)
        more["reference_index"] = torch.tensor([wanted.index(number) if number >= 0 else -1 for number in which])
    output = connected.generate(ids, mask, return_dict_in_generate=True, **OPTIONS, **more)
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


def one_by_one(connected: ConnectedModel, which: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    alone = [answer(connected, [row], (which[row],)) for row in range(len(PROMPTS))]
    return torch.cat([tokens for tokens, _ in alone]), torch.cat([logits for _, logits in alone])


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("alignment", ["anchor", "mean", "attention"])
@pytest.mark.parametrize("scopes", SCOPES, ids=lambda scopes: "-".join(scopes.values()))
def test_rows_with_and_without_a_reference_in_one_batch(scopes, alignment, left):
    connected = gated(alignment=alignment, **scopes)
    together = answer(connected, [0, 1, 2, 3], MIXED, left)
    close(together, one_by_one(connected, MIXED))
    nobody = answer(connected, [0, 1, 2, 3], (-1, -1, -1, -1))
    for row, reference in enumerate(MIXED):  # the hint reaches the rows that have one, and no other
        same = torch.allclose(together[1][row], nobody[1][row], atol=1e-5)
        assert same is (reference < 0), row


@pytest.mark.parametrize("alignment", ["anchor", "mean", "attention"])
@pytest.mark.parametrize("scopes", SCOPES, ids=lambda scopes: "-".join(scopes.values()))
def test_a_cached_step_is_the_whole_forward(scopes, alignment):
    """Each step reads one token over the cache; one forward over prompt and answer gives the same logits."""
    connected = gated(alignment=alignment, **scopes)
    tokens, logits = answer(connected, [0, 1, 2, 3], MIXED)
    for row, reference in enumerate(MIXED):
        whole = torch.cat([PROMPTS[row], tokens[row]])[None]
        length = len(PROMPTS[row])
        hint = {} if reference < 0 else {"reference_input_ids": REFERENCES[reference][None]}
        full = connected(whole, prompt_lengths=torch.tensor([length]), **hint).logits[0, length - 1 : -1]
        torch.testing.assert_close(logits[row], full, rtol=1e-4, atol=1e-5)


def test_several_answers_to_a_row_share_its_reference():
    connected = gated(scope="response")
    ids, mask = padded(PROMPTS, left=True)
    hint = {"reference_input_ids": REFERENCES[0][None], "reference_index": torch.tensor([0, -1, 0, -1])}
    options = {"max_new_tokens": STEPS, "pad_token_id": 0, "do_sample": False, **hint}
    once = connected.generate(ids, mask, **options)
    torch.manual_seed(0)
    sampled = connected.generate(ids, mask, **{**options, "do_sample": True, "top_k": 1}, num_return_sequences=3)
    assert torch.equal(sampled, once.repeat_interleave(3, dim=0))  # the likeliest token alone: nothing is left to draw


@pytest.mark.parametrize("which", [(1, 0, 0, 1), (-1, -1, -1, -1)], ids=["references", "matrix"])
def test_adaptive_batches_equal_each_row_alone(which, batch):
    connected = adaptive(batch)
    for left in (False, True):
        close(answer(connected, [0, 1, 2, 3], which, left), one_by_one(connected, which))


def test_adaptive_rows_in_the_reference_language_take_no_part(batch):
    """`connect` leaves them out of a batch without references; in one with references, those without take no part."""
    connected = adaptive(batch)
    with connected.disable_adapter():
        base = answer(connected, [0, 1, 2, 3], (-1, -1, -1, -1))
    part = answer(connected, [0, 1, 2, 3], (-1, -1, -1, -1), connect=torch.tensor([True, False, True, False]))
    live = answer(connected, [0, 1, 2, 3], MIXED)
    for row in range(4):
        for found in (part, live):
            assert torch.allclose(found[1][row, 0], base[1][row, 0], atol=1e-5) is (row in (1, 3))


def test_positions_of_references_do_not_depend_on_the_side_of_their_padding():
    """In a base whose positions are absolute."""
    connected = ConnectedModel.attach(build("gpt2"), ConnectionConfig("gated")).eval()
    shake(connected, 0.5)
    ids, mask = padded(PROMPTS[:2], left=True)
    found = []
    for left in (True, False):
        references, reference_mask = padded([REFERENCES[0], REFERENCES[1][:6]], left)
        given = {"reference_input_ids": references, "reference_attention_mask": reference_mask}
        made = connected.generate(ids, mask, **given, **OPTIONS, return_dict_in_generate=True)
        found.append(torch.stack(made.logits))
    torch.testing.assert_close(*found)
