"""Two languages made identical meet, unrelated ones do not, and what is captured is what the model computes."""

from __future__ import annotations

import math

import pytest
import torch

from cctuning.analysis import (
    cosine,
    language_batches,
    language_similarity,
    linear_cka,
    principal_plane,
    prompt_activations,
)
from cctuning.connection import ConnectionConfig
from tests.analysis.world import PROMPTS, REFERENCE, attach, batches, ffn, random_rows
from tests.conftest import shake

PLAIN = ConnectionConfig(connection="none")


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{"connection": "none"}, {}, {"connection": "adaptive"}])
def test_two_languages_made_identical(options):
    connected = attach(ConnectionConfig(**{"connection": "gated", **options}))
    if options != {"connection": "adaptive"}:  # which would add to the prompts alone
        shake(connected)
    else:
        connected.adaptive.selector.weight.data.zero_()
        connected.adaptive.matrix.weight.data.zero_()
        connected.adaptive.fitted.fill_(True)
    found = language_similarity(connected, language_batches(random_rows("aa", 12, 1, same=True), 0, batch_size=5))
    torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine))
    torch.testing.assert_close(found.cka, torch.ones_like(found.cka))
    assert found.layers == [0, 1, 2] and found.rows.tolist() == [12] and float(found.unrelated.max()) < 0.9


def test_unrelated_prompts_do_not_meet():
    connected = attach(PLAIN)
    found = language_similarity(connected, language_batches(random_rows("aa", 60, 2), 0))
    assert float(found.cka.abs().max()) < 0.25
    assert float((found.cosine - found.unrelated).abs().max()) < 0.1


def test_few_prompts_in_many_dimensions():
    """The published estimate calls anything alike there; the unbiased one does not."""
    x, y = normal(20, 2000, 1), normal(20, 2000, 2)
    assert linear_cka(x, y, unbiased=False) > 0.95
    assert abs(linear_cka(x, y)) < 0.1
    assert linear_cka(x, x) == pytest.approx(1) and linear_cka(x, x, unbiased=False) == pytest.approx(1)


def test_cka_does_not_see_rotation_scale_or_offset_and_cosine_does():
    x = normal(30, 8, 3)
    turned = 3 * x @ torch.linalg.qr(normal(8, 8, 4)).Q + 5
    for unbiased in (True, False):
        assert linear_cka(x, turned, unbiased) == pytest.approx(1)
    assert abs(cosine(x, turned)[0]) < 0.5


def test_cka_against_its_definition():
    """Kornblith et al. 2019, equation 4 with a linear kernel, in its feature form."""
    x, y = normal(40, 6, 5), normal(40, 9, 6)
    y[:, :6] += x
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y, unbiased=False) == pytest.approx(float(expected), rel=1e-5)


def test_cosines_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    own, unrelated = cosine(x, y)
    assert own == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert unrelated == pytest.approx(math.sqrt(0.5) / 2)  # x1.y2 and x2.y1
    assert math.isnan(cosine(x[:1], y[:1])[1]) and math.isnan(linear_cka(x, y))
    with pytest.raises(ValueError, match="2 rows and y 1"):
        linear_cka(x, y[:1])


def test_what_is_captured_is_the_prompts_last_token_whatever_follows_it():
    connected = attach(PLAIN)
    for batch in batches():
        own, theirs = prompt_activations(connected, batch)
        expected = torch.stack(ffn(connected.model, PROMPTS[batch.language]))
        torch.testing.assert_close(own, expected.expand_as(own))
        torch.testing.assert_close(theirs, torch.stack(ffn(connected.model, REFERENCE)).expand_as(theirs))


def test_a_connected_model_is_captured_through_its_transform():
    connected = attach(ConnectionConfig("gated"))
    shake(connected)
    batch = batches()[0]
    own, theirs = prompt_activations(connected, batch)
    plain = connected.merge_and_unload()
    torch.testing.assert_close(own[0], torch.stack(ffn(plain, PROMPTS["aa"])), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs[0], torch.stack(ffn(plain, REFERENCE)), rtol=1e-4, atol=1e-5)


def test_a_known_plane():
    points = normal(25, 2, 7) * torch.tensor([4.0, 1.0])
    axes = torch.linalg.qr(normal(20, 2, 8)).Q
    found = principal_plane(points @ axes.T + 3)
    torch.testing.assert_close(
        torch.cdist(found.points, found.points), torch.cdist(points, points), rtol=1e-3, atol=1e-3
    )
    assert float(found.explained.sum()) == pytest.approx(1) and float(found.explained[0]) > 0.8
    tall = principal_plane(points @ axes.T + normal(25, 20, 9) * 3)
    assert 0 < float(tall.explained.sum()) < 0.8  # noise in the other dimensions is not called explained


def test_points_that_are_all_one_point():
    found = principal_plane(torch.ones(3, 5))
    assert found.points.abs().max() < 1e-6 and found.explained.tolist() == [0, 0]
