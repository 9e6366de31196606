"""The cross-entropy over blocks of positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cctuning.model.objective import CrossEntropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [0, 1, 23])
def test_cross_entropy_in_blocks(dtype, positions, monkeypatch):
    monkeypatch.setattr(CrossEntropy, "BLOCK", 100)  # two positions a block
    torch.manual_seed(0)
    logits = (3 * torch.randn(positions, 37)).to(dtype)
    wanted, weight = torch.randint(37, (positions,)), torch.rand(positions)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = CrossEntropy.apply(ours, wanted)
    expected = nn.functional.cross_entropy(theirs.float(), wanted, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)
