"""A gate that was forced open in one place is open there, and there alone, in the figures."""

from __future__ import annotations

import pytest
import torch

from cctuning.analysis import gate_statistics, language_batches, layer_choice, observe
from cctuning.connection import ConnectionConfig
from cctuning.errors import UserError
from tests.analysis.world import PROMPTS, REFERENCE, attach, batches, ffn, random_rows, row
from tests.conftest import shake


def force(connected, layer: int, language: str) -> None:
    """Open the gate of `layer` where the activations differ as those of `language` do, and shut it for the other."""
    reference = ffn(connected.model, REFERENCE)[layer]
    own = reference - ffn(connected.model, PROMPTS[language])[layer]
    other = reference - ffn(connected.model, PROMPTS[next(one for one in PROMPTS if one != language)])[layer]
    direction = (own - other) / (own - other).square().sum()
    up = connected.connections[layer].decision.up
    up.weight.data = 20 * direction.expand_as(up.weight).clone()
    up.bias.data.fill_(-20 * float(direction @ (own + other)) / 2)


def closed():
    return attach(ConnectionConfig("gated", decision_bias=-8.0))


@pytest.mark.parametrize("language", list(PROMPTS))
def test_a_gate_forced_open_in_one_layer_for_one_language(language):
    connected = closed()
    force(connected, 1, language)
    found = gate_statistics(connected, batches())
    share = found.by_layer
    assert found.languages == ["aa", "bb"] and found.layers == [0, 1, 2]
    assert found.positions.tolist() == [3, 3]  # the prompts' ends
    at = found.languages.index(language)
    assert float(share[at, 1]) > 0.999
    share[at, 1] = 0
    assert float(share.max()) < 0.001
    assert float(found.deviation.max()) < 1e-3  # one prompt a language: nothing varies


def test_one_dimension_forced_open():
    connected = closed()
    connected.connections[2].decision.up.bias.data[7] = 8.0
    found = gate_statistics(connected, batches())
    shares, numbers = found.strongest(2)
    assert int(numbers[2, 0]) == 7 and float(shares[2, 0]) > 0.999 and float(shares[2, 1]) < 0.001
    assert found.quantiles([0.5, 1.0])[2].tolist() == pytest.approx([0.00033, 0.99966], abs=1e-4)
    assert float(found.by_layer[0, 2]) == pytest.approx(1 / 32, abs=1e-3)


def test_mean_and_deviation_over_positions_as_worked_out_by_hand():
    connected = attach(ConnectionConfig("gated", fusion_scope="response"))
    shake(connected)
    made = language_batches(random_rows("aa", 10, 1), 0, batch_size=4)
    found = gate_statistics(connected, made)
    seen = torch.cat([one.share for one in observe(connected, made) if one.layer == 1])
    assert len(seen) == int(found.positions[0]) == 20  # two answer tokens a row are predicted from two positions
    torch.testing.assert_close(found.mean[0, 1], seen.mean(dim=0))
    torch.testing.assert_close(found.deviation[0, 1], seen.std(dim=0, unbiased=False).mean())


def test_a_fixed_decision_is_its_value():
    found = gate_statistics(attach(ConnectionConfig("gated", decision="fixed", decision_value=0.25)), batches())
    assert found.by_layer.unique().tolist() == [0.25] and float(found.deviation.max()) == 0


def test_the_layer_an_adaptive_connection_chooses():
    connected = attach(ConnectionConfig(connection="adaptive"))
    one = batches()[0]
    embedding = connected.model.get_input_embeddings().weight[PROMPTS["aa"][-1]]
    z = torch.stack(ffn(connected.model, REFERENCE)).mean(dim=0) + embedding
    weight = -z.detach().expand(3, -1).clone()
    weight[1] = z.detach()
    connected.adaptive.selector.weight.data = weight
    found = layer_choice(connected, [one])
    assert found.share.tolist() == [[0, 1, 0]] and found.rows.tolist() == [3]
    with pytest.raises(ValueError, match="layer_choice"):
        gate_statistics(connected, [one])


def test_rows_without_a_reference_are_left_out_and_none_is_refused():
    rows = [row([5, 6], "en", []), row([7, 8], "aa", [9, 10]), row([7, 8], "aa", [9, 10])]
    assert [one.language for one in language_batches(rows, 0, batch_size=1)] == ["aa", "aa"]
    with pytest.raises(UserError, match="no row has a reference prompt"):
        language_batches(rows[:1], 0)


def test_what_is_seen_in_training_is_refused():
    connected = attach(ConnectionConfig("gated"))
    with pytest.raises(ValueError, match="eval mode"):
        list(observe(connected.train(), batches()))
    with pytest.raises(ValueError, match="no Decision Maker"):
        gate_statistics(attach(ConnectionConfig(connection="none")), batches())
