"""Packed rows by the FlashAttention that comes with PyTorch, on a GPU: losses and gradients of padded rows."""

from __future__ import annotations

import pytest
import torch

from tests.model.test_packing import connected, gradients, rows
from varlen import register


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", ["none", "align", "gated", "both"])
def test_packed_rows_equal_padded_ones(recipe):
    made, named = connected(recipe, device="cuda")
    made.to(torch.bfloat16)
    batch = {key: value.cuda() for key, value in (rows() | named).items()}
    padded, expected = gradients(made, batch, packed=False)
    made.model.config._attn_implementation = register()
    packed, found = gradients(made, batch, packed=True)
    torch.testing.assert_close(packed.loss, padded.loss, rtol=2e-2, atol=1e-2)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-3, name  # bfloat16: single values differ


def test_rows_are_told_by_their_positions(monkeypatch):
    """As TRL packs: without `cu_seq_lens_q`, a row begins where its positions do."""
    import varlen

    told = {}

    def attention(query, key, value, ends, other, longest, most, **options):
        told.update(ends=ends.tolist(), longest=longest, **options)
        return query

    monkeypatch.setattr(varlen, "varlen_attn", attention)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    query, key = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    out, _ = varlen.attend(module, query, key, key, None, 0.5, position_ids=positions)
    assert told == {"ends": [0, 3, 7], "longest": 4, "scale": 0.5, "window_size": (-1, 0)}
    torch.testing.assert_close(out, query.transpose(1, 2))
    varlen.attend(module, query, key, key, torch.tensor([[1, 1, 1, 1, 1, 0, 0]]), 0.5)
    assert told["ends"] == [0, 5]
