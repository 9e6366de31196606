"""The layers against connection/equations.py, written out row by row: values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from cctuning import ConnectionConfig
from cctuning.connection import equations
from cctuning.connection.align import LayerAlignment, Spans, Statistics
from cctuning.connection.gated import LayerConnection
from cctuning.connection.plan import Offered, Plan, Wire, total

D, ROWS, LENGTH = 6, 3, 4
CONNECTED = torch.tensor([1, 3, 4, 11])  # flat positions: two of row 0, one each of rows 1 and 2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(loss: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [
        torch.zeros_like(i) if g is None else g
        for i, g in zip(inputs, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("loss", ["relative", "standardized"])
@pytest.mark.parametrize("transform", ["low_rank", "dense", "nonlinear"])
@pytest.mark.parametrize("scope", ["all", "response"])
def test_a_gated_layer(loss, transform, scope):
    config = ConnectionConfig(
        "gated",
        align_loss=loss,
        transform=transform,
        transform_rank=2,
        align_weight=3.0,
        scope=scope,
        fusion_scope="prompt_end",
    )
    wire = Wire()
    layer = LayerConnection(config, D, index=0, number=2, wire=wire)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = 0.5 * drawn(*parameter.shape, seed=number)
    if loss == "standardized":
        layer.spread.copy_(drawn(D, seed=50).abs() + 0.5)
    h = drawn(ROWS, LENGTH, D, seed=1).requires_grad_()
    references, which = drawn(2, D, seed=2), torch.tensor([0, 0, 1, 1])
    weight, fused = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([False, True, False])
    acts = torch.arange(ROWS * LENGTH) if scope == "all" else torch.tensor([1, 2, 3, 4, 5, 6, 10, 11])
    rest = acts[~torch.isin(acts, CONNECTED)]
    plan = Plan(
        "connect",
        ROWS,
        LENGTH,
        transform_index=None if scope == "all" else acts,
        connect_index=CONNECTED,
        connect_row=CONNECTED // LENGTH,
        connect_reference=which,
        fused=fused,
        identity_index=rest,
        identity_row=rest // LENGTH,
        row_weight=weight,
        identity_weight=0.5,
        offered=Offered({0: (references, None)}),
    )
    probe = drawn(ROWS, LENGTH, D, seed=3)
    parameters = [h, *(p for p in layer.parameters() if p.requires_grad)]
    wire.plan = plan
    output = layer(h, h)
    fast = total((output * probe).sum(), plan)
    found = gradients(fast, parameters)

    # the same, one position after the other
    flat, written, e = h.reshape(-1, D), [], dict(zip(CONNECTED.tolist(), references[which], strict=True))
    spread = layer.spread if loss == "standardized" else torch.ones(D)
    error, strayed = [[[], []] for _ in range(ROWS)], [[[], []] for _ in range(ROWS)]
    for place in range(ROWS * LENGTH):
        row, own = place // LENGTH, flat[place]
        changed = equations.transform(own, layer.transform) if place in acts.tolist() else own
        if place in e:
            share = layer.decision(e[place][None] / spread, own[None] / spread)[0]
            f = share * e[place] + (1 - share) * own
            error[row][0].append(changed / spread)
            error[row][1].append(f.detach() / spread)
            written.append(f if fused[row] else changed)
        else:
            if place in rest.tolist():
                strayed[row][0].append(changed)
                strayed[row][1].append(own)
            written.append(own if fused[row] else changed)
    measure = equations.standardized_error if loss == "standardized" else equations.relative_error
    objective = torch.zeros(())
    for row in range(ROWS):
        out, target = (torch.stack(side) for side in error[row])
        objective = (
            objective + 3.0 / 2 * weight[row] * measure(out, target, torch.zeros(len(out), dtype=torch.long), 1)[0]
        )
        out, own = (torch.stack(side) for side in strayed[row])
        # the size is that of h, detached; the numerator is the transform's own output
        missed = (out - own).square().sum() / own.detach().square().sum()
        objective = objective + 3.0 / 2 * 0.5 * weight[row] * missed
    slow = (torch.stack(written).view_as(h) * probe).sum() + objective
    torch.testing.assert_close(fast, slow)
    for one, other in zip(found, gradients(slow, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["relative", "standardized", "contrastive"])
def test_an_aligned_layer(loss):
    config, wire = ConnectionConfig(align_loss=loss, align_weight=2.0, align_temperature=0.3), Wire()
    layer = LayerAlignment(config, index=4, number=3, wire=wire)
    references, which = drawn(5, D, seed=7) * 3 + 1, torch.tensor([2, 0, 4])
    layer.statistics = Statistics.of(references)
    h = drawn(ROWS, LENGTH, D, seed=8).requires_grad_()
    spans = torch.tensor([[0, 0.5, 0.5, 0], [0, 1.0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3]])
    taken = Spans(torch.arange(ROWS * LENGTH).view(ROWS, LENGTH), spans)
    weight, probe = torch.tensor([0.5, 0.0, 0.25]), drawn(ROWS, LENGTH, D, seed=9)
    wire.plan = plan = Plan("align", ROWS, LENGTH, row_weight=weight, spans=taken)
    plan.offered, plan.connect_reference = Offered({4: (references, None)}), which
    fast = total((layer.hook(None, (), {}, h) * probe).sum(), plan)

    mean, spread = references.mean(dim=0), references.std(dim=0, correction=0)
    slow = (h * probe).sum()
    for row in range(ROWS):
        pooled, own = (spans[row][:, None] * h[row]).sum(dim=0), references[which[row]]
        z, z_e, z_all = ((x - mean) / spread for x in (pooled, own, references))
        if loss == "relative":
            error = (pooled - own).square().sum() / own.square().sum()
        elif loss == "standardized":
            error = (z - z_e).square().mean()
        else:
            error = -(torch.cosine_similarity(z, z_all, dim=-1) / 0.3).log_softmax(dim=0)[which[row]]
        slow = slow + 2.0 / 3 * weight[row] * error
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, [h]), gradients(slow, [h]), rtol=1e-4, atol=1e-5)


def test_a_term_of_the_loss_has_one_value_and_its_gradient():
    """What `total` adds is what backward carries, scaled as the loss is."""
    config = ConnectionConfig("gated", paths="student", decision="fixed", decision_value=1.0)
    wire = Wire()
    layer = LayerConnection(config, D, 0, 1, wire)
    layer.transform.up.weight.data = drawn(D, 16, seed=1)
    values = []
    for scale in (1.0, 0.25):
        twin = copy.deepcopy(layer)
        h = drawn(1, LENGTH, D, seed=2)
        twin.wire.plan = plan = Plan(
            "connect",
            1,
            LENGTH,
            connect_index=torch.tensor([3]),
            connect_row=torch.tensor([0]),
            connect_reference=torch.tensor([0]),
            row_weight=torch.ones(1),
            offered=Offered({0: (drawn(1, D, seed=3), None)}),
        )
        loss = total(twin(h, h).sum() * 0, plan) * scale
        loss.backward()
        values.append((float(loss.detach()) / scale, twin.transform.down.weight.grad / scale))
    assert values[0][0] == pytest.approx(values[1][0]) and values[0][0] > 0
    torch.testing.assert_close(values[0][1], values[1][1])


def test_the_schedule_and_the_distillation():
    assert [equations.fused_probability(step, 3, 1.0, 0.0) for step in range(-1, 4)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    teacher, student = drawn(4, 9, seed=1), drawn(4, 9, seed=2)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(dim=-1)
    torch.testing.assert_close(equations.distillation(teacher, student), expected)
    assert float(equations.distillation(teacher, teacher).abs().max()) < 1e-6
