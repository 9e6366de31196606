"""The connection's parts by themselves: alignment, decision, transform, scopes, options."""

from __future__ import annotations

import pytest
import torch

from cctuning import ConnectionConfig, UserError
from cctuning.connection.parts import ALIGNMENTS, DECISIONS, Anchor, Attention, FixedBlend, Gate, Mean, build_transform
from cctuning.connection.plan import Reference, last_real, predicting, prompt_ends, scope_mask
from cctuning.model.passes import uniform

# -- alignment ----------------------------------------------------------------------------------------------------


def test_anchor_is_the_last_real_token_under_padding_on_either_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert last_real(mask).tolist() == [1, 3, 3, 2]
    output = torch.randn(4, 4, 3)
    values, keys = Anchor().remember(output, output, Reference.from_mask(mask))
    assert keys is None
    assert torch.equal(values, output[torch.arange(4), torch.tensor([1, 3, 3, 2])])


@pytest.mark.parametrize("alignment", ["mean", "attention"])
def test_padding_of_a_reference_counts_for_nothing(alignment):
    output, inputs = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    queries, which = torch.randn(3, 5), torch.tensor([0, 1, 0])

    def offered(noise: float) -> torch.Tensor:
        padded, keys = output.clone(), inputs.clone()
        padded[0, 2:], keys[0, 2:] = noise, noise
        reference = Reference.from_mask(mask)
        kind = ALIGNMENTS[alignment]()
        return kind.offer(kind.remember(padded, keys, reference), which, queries, reference)

    assert torch.equal(offered(0.0), offered(1e4))


def test_mean_and_attention_by_hand():
    output, inputs = torch.randn(1, 3, 4), torch.randn(1, 3, 6)
    reference = Reference.from_mask(torch.ones(1, 3))
    which, queries = torch.tensor([0, 0]), torch.randn(2, 6)
    mean = Mean().offer(Mean().remember(output, inputs, reference), which, queries, reference)
    torch.testing.assert_close(mean, output[0].mean(dim=0).expand(2, 4))
    attended = Attention().offer(Attention().remember(output, inputs, reference), which, queries, reference)
    expected = torch.nn.functional.scaled_dot_product_attention(queries[None], inputs, output)[0]
    torch.testing.assert_close(attended, expected)


# -- decision and transform ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 3])
def test_gate_starts_at_its_bias_and_is_a_share(rank):
    gate = Gate(ConnectionConfig("gated", decision_bias=-2.0, decision_rank=rank), 8)
    first = gate(torch.randn(5, 8), torch.randn(5, 8))
    torch.testing.assert_close(first, torch.full((5, 8), 2.0).neg().sigmoid())
    gate.up.weight.data.normal_(std=5)
    moved = gate(torch.randn(5, 8), torch.randn(5, 8))
    assert moved.min() >= 0 and moved.max() <= 1 and moved.std() > 0.1


def test_decision_fixed_is_the_same_everywhere():
    config = ConnectionConfig("gated", decision="fixed", decision_value=0.25)
    decision = DECISIONS["fixed"](config, 8)
    assert isinstance(decision, FixedBlend)
    assert float(decision(torch.randn(2, 8), torch.randn(2, 8))) == 0.25


@pytest.mark.parametrize("kind", ["low_rank", "dense"])
def test_delta_matrix_is_what_the_transform_does(kind):
    transform = build_transform(ConnectionConfig("gated", transform=kind, transform_rank=3), 8)
    for parameter in transform.parameters():
        parameter.data.normal_()
    hidden = torch.randn(5, 8)
    torch.testing.assert_close(hidden @ transform.matrix(), transform(hidden))


def test_nonlinear_transform_has_no_matrix():
    with pytest.raises(UserError, match="not linear"):
        build_transform(ConnectionConfig("gated", transform="nonlinear"), 8).matrix()


# -- scopes and draws ---------------------------------------------------------------------------------------------


def test_scopes_of_answered_answer_free_and_many_turn_rows():
    """The prompt's end is read off the labels, so a system turn or a second turn cannot move it."""
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100] * 5, [-100, 5, -100, -100, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    predict = predicting(labels)
    assert prompt_ends(mask, predict).tolist() == [1, 2, 3]  # of several turns that are learned, the last one's
    assert scope_mask("prompt_end", mask, predict).nonzero().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert torch.equal(scope_mask("all", mask, predict), mask.bool())
    assert scope_mask("response", mask, None).nonzero().tolist() == [[0, 3], [1, 2], [2, 4]]


def test_draws_are_uniform_and_depend_on_seed_step_and_row_alone():
    rows = torch.arange(20_000)
    first = uniform(7, 3, rows)
    assert first.min() >= 0 and first.max() < 1 and abs(first.mean() - 0.5) < 0.01
    counts = torch.histc(first, 10, 0, 1)
    assert (counts - 2000).abs().max() < 250
    assert torch.equal(first[[17, 4]], uniform(7, 3, torch.tensor([17, 4])))
    for other in (uniform(8, 3, rows), uniform(7, 4, rows)):
        correlation = torch.corrcoef(torch.stack([first, other]))[0, 1]
        assert abs(correlation) < 0.03
    assert uniform(2**31 - 1, 10**7, rows).max() < 1


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "everywhere"}, "scope: 'everywhere' is not one of prompt_end, response, all"),
        ({"transform": "lowrank"}, "Did you mean 'low_rank'"),
        ({"scope": "prompt_end", "fusion_scope": "all"}, "reaches beyond scope"),
        ({"distill_weight": 1.0}, "distill_weight needs paths: both"),
        ({"transform_rank": 0}, "transform_rank: expected at least 1"),
        ({"fused_probability_start": 1.5}, "at least 0 and at most 1, got 1.5"),
        ({"align_weight": -1.0}, "at least 0"),
        ({"align_weight": float("nan")}, "align_weight: expected a number, got nan"),
        ({"decision_bias": float("inf")}, "decision_bias: expected a number, got inf"),
        ({"transform_rank": 2.5}, r"expected a whole number, got 2\.5"),
        ({"layers": ["0"]}, "layers: expected a list of whole numbers or null"),
        ({"layers": [1, 1]}, "distinct layer numbers"),
        ({"connection": "adaptive", "paths": "both"}, "adaptive trains on the fused pass"),
    ],
)
def test_bad_options_say_what_is_expected(options, message):
    with pytest.raises(UserError, match=message):
        ConnectionConfig(**{"connection": "gated", **options})


def test_unknown_option_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'align_weight'"):
        ConnectionConfig.from_dict({"align_wieght": 3})


def test_every_option_explains_itself():
    from dataclasses import fields

    assert all(len(option.metadata["help"]) > 20 for option in fields(ConnectionConfig))


def test_what_can_be_folded():
    assert ConnectionConfig("gated").mergeable
    assert ConnectionConfig("gated", transform="none", paths="student").mergeable
    assert not ConnectionConfig("gated", scope="response").mergeable
    assert not ConnectionConfig("gated", transform="nonlinear").mergeable
    assert not ConnectionConfig(connection="adaptive").mergeable
