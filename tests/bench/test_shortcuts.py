"""What was made faster gives what the long way gives, and compiles as the base model does."""

from __future__ import annotations

import pytest
import torch

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.connection.parts import build_transform
from cctuning.model.adaptive import StreamingLeastSquares
from tests.conftest import shake, tiny_llama


@pytest.mark.parametrize("kind", ["low_rank", "dense", "nonlinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_far_a_transform_moves(kind, dtype):
    """The norm by a small Gram matrix, and its gradient, are those of the vector itself."""
    torch.manual_seed(0)
    transform = build_transform(ConnectionConfig("gated", transform=kind, transform_rank=4), 16)
    for parameter in transform.parameters():
        parameter.data.normal_()
    found = {}
    for name in ("short", "long"):
        hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        delta, norm = transform.moved(hidden) if name == "short" else (transform(hidden), None)
        norm = delta.float().square().sum(dim=-1) if norm is None else norm
        gradients = torch.autograd.grad((norm * torch.arange(5)).sum(), [hidden, *transform.parameters()])
        found[name] = (delta, norm, *gradients)
    for short, long in zip(found["short"], found["long"], strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # of the largest entry: long rounds delta to bf16 first
        assert (short.float() - long.float()).abs().max() < tolerance * long.float().abs().max()


def test_low_rank_transform_under_autocast():
    """Half precision is cast to once, and the norm stays in fp32: rounding it would drown a small movement."""
    transform = build_transform(ConnectionConfig("gated", transform_rank=4), 16)
    transform.up.weight.data.normal_(std=1e-2)
    hidden = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        delta, norm = transform.moved(hidden.bfloat16())
    assert delta.dtype == torch.bfloat16 and norm.dtype == torch.float32
    expected = transform(hidden).square().sum(dim=-1)
    torch.testing.assert_close(norm, expected, rtol=3e-2, atol=0)


def adaptive(model) -> ConnectedModel:
    connected = ConnectedModel.attach(model, ConnectionConfig(connection="adaptive")).eval()
    torch.manual_seed(3)
    connected.adaptive.selector.weight.data.normal_()
    connected.adaptive.set_matrix(20 * (torch.eye(32) + 0.1 * torch.randn(32, 32)))
    return connected


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_adaptive_generation_of_several_sequences(options):
    connected = adaptive(tiny_llama())
    prompts = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(5))
    tokens = connected.generate(prompts, max_new_tokens=3, pad_token_id=0, **options)
    assert tokens.shape == (2 * options.get("num_return_sequences", 1), 9)


def test_nothing_runs_in_a_layer_after_the_prompt():
    """scope: prompt_end decodes as the base model does: the transform is called at the prefill alone."""
    connected = ConnectedModel.attach(tiny_llama(), ConnectionConfig("gated", scope="prompt_end")).eval()
    shake(connected)
    calls = []
    connected.connections[0].transform.register_forward_hook(lambda *args: calls.append(1))
    connected.generate(torch.full((2, 4), 5), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert len(calls) == 1


@pytest.mark.parametrize("size", [1, 50, 5000])
def test_least_squares_by_blocks(size):
    """Batches smaller and larger than a block give the fit of all pairs at once, to rounding."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 6, generator=draw)
    y = x @ torch.randn(6, 6, generator=draw) + 0.1 * torch.randn(5000, 6, generator=draw)
    held = torch.arange(5000) % 10 == 0
    solver = StreamingLeastSquares(6)
    for start in range(0, 500 if size == 1 else 5000, size):
        part = slice(start, start + size)
        solver.add(x[part], y[part], held[part])
    fit = solver.solve()
    used = slice(0, 500 if size == 1 else 5000)
    direct = torch.linalg.lstsq(x[used][~held[used]].double(), y[used][~held[used]].double()).solution
    error = (x[used][held[used]].double() @ direct - y[used][held[used]]).square().sum()
    assert fit.error_held_out == pytest.approx(float(error / y[used][held[used]].double().square().sum()), abs=1e-4)
    assert fit.pairs + fit.held_out == used.stop


def breaks(model: torch.nn.Module, **inputs) -> int:
    torch._dynamo.reset()
    return torch._dynamo.explain(model)(**inputs).graph_break_count


@pytest.mark.slow
def test_compile_breaks_no_graph_in_answering():
    """The student pass without labels, called as a plain model, and its result when it is compiled."""
    inputs = {"input_ids": torch.full((2, 5), 7), "use_cache": False}
    base = breaks(tiny_llama(layers=2), **inputs)
    connected = ConnectedModel.attach(tiny_llama(layers=2), ConnectionConfig("gated")).eval()
    shake(connected)
    assert breaks(connected.model, **inputs) == base
    torch._dynamo.reset()
    compiled = torch.compile(connected.model, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, connected.model(**inputs).logits)
