"""The alignment of whole prompts: its equations by hand, and what must not change what is aligned."""

from __future__ import annotations

import math

import pytest
import torch

from cctuning.connection.align import Spans, Statistics, error, spans


def cloud(count: int = 40, size: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def dense(found: Spans, width: int) -> torch.Tensor:
    """The weights of all positions (B, T)."""
    rows = len(found.index)
    return torch.zeros(rows * width).index_add(0, found.index.flatten(), found.weight.flatten()).view(rows, width)


def test_a_mean_leaves_out_the_first_token_and_what_is_not_the_prompt_s_own():
    starts, ends, last = torch.tensor([0, 2, 0]), torch.tensor([4, 3, 1]), torch.tensor([5, 4, 0])
    mean = dense(spans("mean", starts, ends, last, 6), 6)
    third = 1 / 3
    expected = torch.tensor([[0, third, third, third, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(mean, expected)
    assert dense(spans("text_last", starts, ends, last, 6), 6).argmax(dim=1).tolist() == [3, 2, 0]
    assert dense(spans("last", starts, ends, last, 6), 6).argmax(dim=1).tolist() == [5, 4, 0]


def test_a_huge_first_token_changes_nothing():
    hidden = torch.randn(2, 5, 3)
    found = spans("mean", torch.tensor([0, 0]), torch.tensor([5, 4]), torch.tensor([4, 3]), 5)
    before = found.pool(hidden)
    hidden[:, 0] = 1e6
    assert torch.equal(before, found.pool(hidden))
    torch.testing.assert_close(before[1], hidden[1, 1:4].mean(dim=0))


def test_standardized_is_the_mean_square_in_units_of_the_references_spread():
    references = torch.tensor([[1.0, 10.0], [3.0, 30.0]])  # mean 2, 20; spread 1, 10
    found = Statistics.of(references)
    rows = torch.tensor([[2.0, 20.0], [3.0, 10.0]])
    # first row: ((2-1)/1)^2 = 1, ((20-10)/10)^2 = 1; second: 0, ((10-30)/10)^2 = 4
    assert error("standardized", rows, references, torch.tensor([0, 1]), found, 0.1).tolist() == pytest.approx(
        [1.0, 2.0]
    )


def test_standardized_is_1_for_the_mean_reference():
    references = cloud()
    found = Statistics.of(references)
    missed = error(
        "standardized", found.mean.expand_as(references), references, torch.arange(len(references)), found, 0.1
    )
    assert float(missed.mean()) == pytest.approx(1.0, abs=1e-5)


def test_contrastive_by_hand():
    references = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = Statistics.of(references)  # mean 0, spread equal in both dimensions: cosines are those of the plane
    missed = error("contrastive", torch.tensor([[3.0, 0.0]]), references, torch.tensor([0]), found, 0.5)
    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(-2) + 2))
    assert missed.tolist() == pytest.approx([expected])


@pytest.mark.parametrize("loss", ["standardized", "contrastive"])
def test_an_outlier_dimension_that_all_prompts_share_does_not_change_what_is_aligned(loss):
    references, rows = cloud(), cloud(seed=1)

    def missed(offset: float) -> torch.Tensor:
        there = references.clone(), rows.clone()
        for side in there:
            side[:, 2] += offset
        found = Statistics.of(there[0])
        return error(loss, there[1], there[0], torch.arange(len(rows)), found, 0.1)

    torch.testing.assert_close(missed(0.0), missed(1000.0), rtol=1e-3, atol=1e-3)
    scaled = references * torch.tensor([1, 1, 1, 1, 1, 50.0]), rows * torch.tensor([1, 1, 1, 1, 1, 50.0])
    found = Statistics.of(scaled[0])
    torch.testing.assert_close(
        error(loss, scaled[1], scaled[0], torch.arange(len(rows)), found, 0.1), missed(0.0), rtol=1e-3, atol=1e-3
    )


def test_relative_is_blind_to_content_under_an_outlier():
    """Why it is not the default: a dimension that says nothing makes any pair look aligned."""
    references, rows = cloud(), cloud(seed=1)
    references[:, 0] += 100
    rows[:, 0] += 100
    assert float(error("relative", rows, references, torch.arange(len(rows)), None, 0.1).mean()) < 0.01


def test_a_dimension_that_hardly_moves_is_not_blown_up():
    references = cloud()
    references[:, 0] *= 1e-9
    found = Statistics.of(references)
    assert float(found.spread[0]) > 1e-3


def test_a_row_is_told_from_other_references_and_not_from_its_own():
    references = cloud(5)
    found = Statistics.of(references)
    which = torch.tensor([0, 0, 3])
    missed = error("contrastive", references[which], references, which, found, 0.1)
    assert float(missed.max()) < math.log(5)
    wrong = error("contrastive", references[[1, 2, 4]], references, which, found, 0.1)
    assert bool((wrong > missed).all())


def test_a_row_s_error_does_not_depend_on_the_rows_beside_it():
    references, rows = cloud(12), cloud(12, seed=1)
    found, others = Statistics.of(references), torch.tensor([2, 5, 7])

    def missed(which: list[int]) -> torch.Tensor:
        return error("contrastive", rows[which], references, torch.tensor(which), found, 0.1, others)

    together = missed([1, 5, 9])
    assert together.tolist() == pytest.approx([float(missed([row])) for row in (1, 5, 9)])
