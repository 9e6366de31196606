"""A transform whose rank, distance and error were chosen beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from cctuning.analysis import effective_rank, language_batches, transform_errors, transform_shape
from cctuning.connection import ConnectionConfig
from cctuning.data import PairedCollator
from tests.analysis.world import PROMPTS, REFERENCE, attach, batches, ffn, random_rows
from tests.conftest import shake

SIZE = 32


def orthonormal(columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(SIZE, columns, generator=generator)).Q


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("kind", ["low_rank", "dense"])
def test_known_rank_and_distance(kind, rank):
    connected = attach(ConnectionConfig("gated", transform=kind, transform_rank=8))
    scale = 0.5
    a, b = orthonormal(rank, 1) * scale, orthonormal(rank, 2).T
    transform = connected.connections[1].transform
    if kind == "dense":
        transform.map.weight.data = (a @ b).T.contiguous()
    else:
        transform.down.weight.data.zero_()[:rank] = a.T
        transform.up.weight.data.zero_()[:, :rank] = b.T
    found = transform_shape(connected)
    assert found.layers == [0, 1, 2] and found.rank == (8 if kind == "low_rank" else SIZE)
    # `rank` equal singular values of `scale`, and ||I|| = sqrt(d)
    assert found.distance.tolist() == pytest.approx([0, scale * math.sqrt(rank / SIZE), 0], abs=1e-6)
    assert found.effective_rank.tolist() == pytest.approx([0, rank, 0], abs=1e-4)


def test_effective_rank_between_one_and_the_rank():
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.ones(4)) == pytest.approx(4)
    # entropy of (0.75, 0.25), by hand
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


@pytest.mark.parametrize("options", [{"transform": "nonlinear"}, {"transform": "none"}, {"connection": "none"}])
def test_no_matrix_no_shape(options):
    assert transform_shape(attach(ConnectionConfig(**{"connection": "gated", **options}))) is None


def test_a_perfect_transform_for_one_language_closes_its_gap_and_no_other():
    config = ConnectionConfig("gated", transform="dense", decision="fixed", decision_value=1.0)
    connected = attach(config)
    h, e = ffn(connected.model, PROMPTS["aa"])[2], ffn(connected.model, REFERENCE)[2]
    exact = torch.outer(h, e - h) / h.square().sum()  # h (I + M) = e
    connected.connections[2].transform.map.weight.data = exact.T.contiguous()
    found = transform_errors(connected, batches())
    other = ffn(connected.model, PROMPTS["bb"])[2]
    assert found.rows.tolist() == [3, 3]
    assert float(found.error[0, 2]) < 1e-9 and float(found.closed[0, 2]) == pytest.approx(1)
    assert float(found.identity[0, 2]) == pytest.approx(float((h - e).square().sum() / e.square().sum()), rel=1e-4)
    missed = (other + other @ exact - e).square().sum() / e.square().sum()
    assert float(found.error[1, 2]) == pytest.approx(float(missed), rel=1e-4)
    assert float(found.moved[1, 2]) == pytest.approx(
        float((other @ exact).square().sum() / other.square().sum()), rel=1e-4
    )
    torch.testing.assert_close(found.error[:, :2], found.identity[:, :2])  # untouched layers do nothing
    assert found.closed[:, :2].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"alignment": "mean"}, {"scope": "response"}, {"transform": "nonlinear"}])
def test_the_error_is_that_of_training(options):
    """On rows that all run as students, the mean over layers is what the trainer logs as align_loss."""
    connected = attach(ConnectionConfig(**{"connection": "gated", **options}))
    shake(connected)
    rows = random_rows("aa", 6, 3)
    found = transform_errors(connected, language_batches(rows, 0, batch_size=4))
    inputs = PairedCollator(0)(rows)
    output = connected.train()(**inputs, fused_rows=torch.zeros(6, dtype=torch.bool))
    assert float(found.error.mean()) == pytest.approx(float(output.align_loss), rel=1e-4)


def test_an_adaptive_connections_matrix():
    connected = attach(ConnectionConfig(connection="adaptive"))
    assert transform_shape(connected).distance.tolist() == [0]
    made = language_batches(random_rows("aa", 40, 5), 0, batch_size=8)
    before = transform_errors(connected, made)
    torch.testing.assert_close(before.error, before.identity)
    connected.fit_transform([one.inputs for one in made], hold_out=0.0)
    after = transform_errors(connected, made)
    torch.testing.assert_close(after.identity, before.identity)
    assert float(after.error.mean()) < float(after.identity.mean())  # fitted on these rows
    assert after.layers == [0, 1, 2] and float(transform_shape(connected).distance[0]) > 0
