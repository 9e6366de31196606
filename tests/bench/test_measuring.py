"""What the benchmarks report: ratios within a round, and a floor that counts what is counted by running it."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cctuning import ConnectedModel, ConnectionConfig
from flops import Rows, connected_step, decoder_forward, head, plain_step, trl_step
from measuring import alternate, quartiles, ratio
from shapes import Shape, llama

SHAPE = Shape(layers=3, width=32, ffn=80, heads=4, kv_heads=2, vocab=96)
BATCH = Rows(rows=4, tokens=16, answer=6, references=2, reference=8)
LARGE = Shape(layers=32, width=4096, ffn=14336, heads=32, kv_heads=8, vocab=128256)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(2, SHAPE.vocab, (BATCH.rows, BATCH.tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : BATCH.tokens - BATCH.answer] = -100
    return {
        "input_ids": ids,
        "labels": labels,
        "reference_input_ids": ids[: BATCH.references, : BATCH.reference].clone(),
        "reference_index": torch.arange(BATCH.rows) % BATCH.references,
    }


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
@pytest.mark.parametrize("paths", ["none", "sampled", "both"])
def test_floor_is_what_torch_counts(paths, checkpointing):
    """The formula against torch's own counter on a step that runs; attention's backward recomputes a product that the
    floor leaves out, and the small parts of the objective are not in it either: hence at most 4 % above."""
    model = llama(SHAPE)
    model.config._attn_implementation = "eager"  # its products are counted as products
    options = {"connection": "none"} if paths == "none" else {"paths": paths}
    connected = ConnectedModel.attach(
        model, ConnectionConfig(**{"connection": "gated", "transform_rank": 4, **options})
    ).train()
    connected.total_steps = 2
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    found = counted(lambda: connected(**batch(), loss_only=True).loss.backward())
    if paths == "none":
        expected = plain_step(SHAPE, BATCH, checkpointing=checkpointing)
    else:
        expected = connected_step(SHAPE, BATCH, both=paths == "both", checkpointing=checkpointing, rank=4)
    assert 0.96 * expected < found < 1.04 * expected


def test_floor_of_a_large_model():
    """The arithmetic of an 8B shape, 128-token rows, 64-token English: a forward of half the tokens is a sixth of a
    step's layers, a little less of a step with its head; shared by eight it is an eighth of that."""
    one = Rows(rows=8, tokens=128, answer=64, references=8, reference=64)
    eight = Rows(rows=8, tokens=128, answer=64, references=1, reference=64)
    plain = plain_step(LARGE, one)
    forward = decoder_forward(LARGE, 8, 64) / plain
    assert 0.155 < forward < 1 / 6
    assert connected_step(LARGE, eight) / plain < 1.03 < 1.15 < connected_step(LARGE, one) / plain < 1.18
    assert 2.15 < connected_step(LARGE, one, both=True) / plain < 2.19


def test_frozen_base_and_fused_head():
    """A frozen weight takes no gradient of its own, and TRL's head recomputes its logits."""
    layers = decoder_forward(SHAPE, BATCH.rows, BATCH.tokens)
    answers, all_but_last = BATCH.rows * BATCH.answer, BATCH.rows * (BATCH.tokens - 1)
    assert plain_step(SHAPE, BATCH, frozen=True) == 2 * layers + head(SHAPE, answers, 2)
    assert trl_step(SHAPE, BATCH, compact=True) == 3 * layers + head(SHAPE, answers, 4)
    assert trl_step(SHAPE, BATCH, compact=False) == 3 * layers + head(SHAPE, all_but_last, 4)


def test_parameters_are_the_models():
    model = llama(SHAPE)
    norms = (2 * SHAPE.layers + 1) * SHAPE.width
    assert SHAPE.parameters == sum(p.numel() for p in model.parameters()) - norms


def test_rounds_turn_round_and_stop_in_time():
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warm=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert [len(times[name]) for name in "ab"] == [2, 2]
    late = alternate({"a": lambda: None}, rounds=50, warm=0, until=time.monotonic())
    assert len(late["a"]) == 1


def test_ratio_is_of_the_same_round():
    """Rounds of which one was slow for both sides: the ratio does not see it."""
    times = {"ours": [(2.0, 1.2), (9.0, 12.0), (2.0, 1.1)], "theirs": [(1.0, 1.0), (3.0, 10.0), (1.0, 1.0)]}
    found = ratio(times, "ours", "theirs", floor=1.0, target=1.5)
    if not torch.cuda.is_available():
        assert found.ratio == pytest.approx(1.2) and found.over_floor == pytest.approx(1.2)
    assert found.wall_ratio == pytest.approx(2.0) and found.rounds == 3
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
