"""The numeric promises of the method: each test is one of them."""

from __future__ import annotations

import copy

import pytest
import torch

from cctuning import ConnectedModel, ConnectionConfig
from tests.conftest import paired_batch, shake, tiny_llama

EVERY_PATH = ["sampled", "both", "fused", "student"]


def attach(paths="both", training=True, model=None, **options) -> ConnectedModel:
    connected = ConnectedModel.attach(model or tiny_llama(), ConnectionConfig("gated", paths=paths, **options))
    shake(connected)
    return connected.train(training)


def gradients(connected: ConnectedModel, batch: dict) -> dict[str, torch.Tensor]:
    connected.zero_grad()
    connected(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in connected.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert set(one) == set(other)
    for name in one:
        scale = one[name].abs().max().clamp(min=1e-6)
        assert (one[name] - other[name]).abs().max() / scale < tolerance, name


# -- no leak --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["anchor", "mean", "attention"])
@pytest.mark.parametrize("scope", ["prompt_end", "response", "all"])
def test_response_changes_nothing_before_it(alignment, scope, batch):
    """Changing the response never changes the reference pass, nor any activation at a position before it."""
    connected = attach("fused", alignment=alignment, scope=scope, fusion_scope=scope)
    seen: dict[int, list[torch.Tensor]] = {}
    for site in connected._sites:
        site.block.register_forward_hook(lambda m, a, out, i=site.index: seen.setdefault(i, []).append(out.detach()))
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    response = changed["labels"] != -100
    changed["input_ids"][response] = (changed["input_ids"][response] + 7) % 61 + 3
    changed["labels"][response] = changed["input_ids"][response]
    connected(**batch)
    connected(**changed)
    first = response.int().argmax(dim=1)
    for outputs in seen.values():
        reference, fused, reference_again, fused_again = outputs
        assert torch.equal(reference, reference_again)
        for row in range(len(first)):
            before = slice(0, int(first[row]))
            assert torch.equal(fused[row, before], fused_again[row, before])
    assert not torch.equal(fused, fused_again)


# -- identity at the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["low_rank", "dense", "nonlinear", "none"])
@pytest.mark.parametrize("scope", ["prompt_end", "response", "all"])
def test_untrained_student_is_the_base_bit_for_bit(transform, scope, batch):
    base = tiny_llama()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = base(**inputs).logits
    connected = ConnectedModel.attach(copy.deepcopy(base), ConnectionConfig("gated", transform=transform, scope=scope))
    assert torch.equal(connected(**inputs).logits, expected)
    assert torch.equal(connected(**inputs, labels=batch["labels"]).logits, expected)
    if scope == "all":
        assert torch.equal(connected.model(**inputs).logits, expected)


def test_fused_pass_with_a_closed_gate_is_the_base(batch):
    base = tiny_llama()
    config = ConnectionConfig(
        connection="gated", paths="fused", decision="fixed", decision_value=0.0, scope="all", fusion_scope="all"
    )
    connected = ConnectedModel.attach(copy.deepcopy(base), config).train()
    expected = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(connected(**batch).logits, expected)


def test_fused_pass_with_an_open_gate_is_not(batch):
    connected = attach("fused", decision="fixed", decision_value=1.0)
    with connected.disable_adapter():
        base = connected(**batch).logits
    assert not torch.allclose(connected(**batch).logits, base, atol=1e-3)


# -- neighbours and padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", EVERY_PATH)
@pytest.mark.parametrize("alignment", ["anchor", "mean", "attention"])
def test_loss_of_a_batch_is_the_sum_of_its_rows(paths, alignment, batch):
    connected = attach(paths, alignment=alignment, distill_weight=0.0)
    connected.step, connected.total_steps = 1, 3
    counts = {"num_items_in_batch": (batch["labels"][:, 1:] != -100).sum(), "num_rows_in_batch": 4}
    rows = torch.arange(4)
    whole = connected(**batch, row=rows, **counts).loss
    parts = []
    for row in range(4):
        length = int(batch["attention_mask"][row].sum())
        part = {name: batch[name][row : row + 1, :length] for name in ("input_ids", "attention_mask", "labels")}
        if batch["reference_index"][row] >= 0:
            length = int(batch["reference_attention_mask"][row].sum())
            for name in ("reference_input_ids", "reference_attention_mask"):
                part[name] = batch[name][row : row + 1, :length]
        parts.append(connected(**part, row=rows[row : row + 1], **counts).loss)
    assert torch.allclose(whole, torch.stack(parts).sum(), rtol=1e-5)


def test_rows_sharing_a_reference_run_it_once(batch):
    """One reference for two rows gives what a copy of it for each gives."""
    connected = attach("both")
    shared = dict(batch, reference_index=torch.tensor([0, 0, 2, -1]))
    copied = dict(batch)
    for name in ("reference_input_ids", "reference_attention_mask"):
        copied[name] = batch[name][[0, 0, 2]]
    assert_same(gradients(connected, shared), gradients(connected, copied))


# -- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("paths", EVERY_PATH)
def test_gradients_are_the_same_with_checkpointing(use_reentrant, paths, batch):
    connected = attach(paths, scope="all", fusion_scope="response")
    connected.step, connected.total_steps = 1, 3
    connected.model.enable_input_require_grads()  # the reentrant kind needs it wherever the embedding is frozen
    plain = gradients(connected, batch)
    connected.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(plain, gradients(connected, batch))


def test_references_have_no_gradient(batch):
    """Tokens that are in references alone have embeddings without a gradient, under both kinds of checkpointing."""
    only_english = 63
    batch["input_ids"][batch["input_ids"] == only_english] = 3
    batch["labels"][batch["labels"] == only_english] = 3
    batch["reference_input_ids"][:, 1] = only_english
    for checkpointing in (None, False, True):
        connected = attach("fused", align_weight=0.0)
        if checkpointing is not None:
            connected.model.activation_checkpointing_enable({"use_reentrant": checkpointing})
            connected.model.enable_input_require_grads()
        assert not gradients(connected, batch)["model.model.embed_tokens.weight"][only_english].any()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_forwards_before_one_backward(use_reentrant, batch):
    """A recomputation finds the plan of its own pass, though another pass ran since."""
    other = paired_batch(rows=3, seed=5)
    connected = attach("both")
    connected.model.enable_input_require_grads()

    def both() -> dict[str, torch.Tensor]:
        connected.zero_grad()
        first, second = connected(**batch).loss, connected(**other).loss
        connected(input_ids=other["input_ids"])
        (first + 2 * second).backward()
        return {name: p.grad.clone() for name, p in connected.named_parameters() if p.grad is not None}

    plain = both()
    connected.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(plain, both())


def test_alignment_gradient_is_that_of_the_objective_written_out(batch):
    """The gradient carried by the layers equals autograd's on the same objective, computed by hand from the hooks."""
    connected = attach("student", fusion_scope="prompt_end", identity_weight=0.5, align_weight=3.0)
    carried = gradients(connected, batch)
    outputs: dict[int, torch.Tensor] = {}
    handles = [
        site.block.register_forward_hook(lambda m, a, out, i=site.index: outputs.__setitem__(i, out), prepend=True)
        for site in connected._sites
    ]
    anchors = {}
    with torch.no_grad(), connected.disable_adapter():
        connected.model(batch["reference_input_ids"], attention_mask=batch["reference_attention_mask"])
        last = batch["reference_attention_mask"].sum(dim=1) - 1
        anchors = {i: out[torch.arange(3), last] for i, out in outputs.items()}
    connected.zero_grad()
    labels, mask = batch["labels"], batch["attention_mask"].bool()
    logits = connected.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    ends = (labels != -100).int().argmax(dim=1) - 1
    for i, h in outputs.items():
        connection = connected.connections[i]
        w = h + connection.transform(h)
        for row in range(4):
            keep = mask[row].clone()
            if row < 3:
                own, english = h[row, ends[row]], anchors[i][row]
                gate = connection.decision(english[None], own[None])[0]
                target = (gate * english + (1 - gate) * own).detach()
                error = (w[row, ends[row]] - target).square().sum() / target.square().sum()
                loss = loss + 3.0 * error / 3 / 4
                keep[ends[row]] = False
            strayed = (w[row] - h[row])[keep].square().sum() / h[row][keep].detach().square().sum()
            loss = loss + 3.0 * 0.5 * strayed / 3 / 4
    loss.backward()
    written = {name: p.grad for name, p in connected.named_parameters() if p.grad is not None}
    [handle.remove() for handle in handles]
    assert_same(carried, written, 1e-4)


@pytest.mark.parametrize("paths", EVERY_PATH)
def test_every_trainable_part_takes_part_whatever_the_batch(paths, batch):
    """DDP refuses a parameter without a gradient: English rows alone, answer-free ones alone, all fused, none."""
    english = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    answer_free = dict(batch, labels=torch.full_like(batch["labels"], -100))
    everyone = torch.ones(4, dtype=torch.bool)
    for inputs in (batch, english, answer_free, dict(batch, fused_rows=everyone), dict(batch, fused_rows=~everyone)):
        connected = attach(paths)
        connected.total_steps = 2
        connected(**inputs).loss.backward()
        idle = [name for name, p in connected.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle


def test_alignment_scales_with_the_loss(batch):
    """Gradient accumulation and loss scaling multiply the loss; the carried gradient must follow."""
    connected = attach("both")
    plain = gradients(connected, batch)
    connected.zero_grad()
    (connected(**batch).loss * 0.25).backward()
    scaled = {name: p.grad * 4 for name, p in connected.named_parameters() if p.grad is not None}
    assert_same(plain, scaled)


# -- inference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["prompt_end", "response", "all"])
def test_generation_is_the_student_pass(scope, batch):
    """Greedy tokens from `generate` are those of full student passes, and the same every time."""
    connected = attach(training=False, scope=scope)
    prompts, mask = batch["input_ids"][:2, :4], torch.ones(2, 4, dtype=torch.long)
    tokens = connected.generate(prompts, mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, connected.generate(prompts, mask, max_new_tokens=5, do_sample=False, pad_token_id=0))
    labels = tokens.clone()
    labels[:, :4] = -100
    logits = connected(tokens, labels=labels).logits
    assert torch.equal(logits[:, 3:-1].argmax(dim=-1), tokens[:, 4:])


@pytest.mark.parametrize("alignment", ["anchor", "mean", "attention"])
@pytest.mark.parametrize("fusion_scope", ["prompt_end", "response", "all"])
def test_generation_over_the_live_connection_is_the_fused_pass(alignment, fusion_scope, batch):
    connected = attach("fused", alignment=alignment, scope="all", fusion_scope=fusion_scope)
    connected.eval()
    prompts, mask = batch["input_ids"][:3, :4], torch.ones(3, 4, dtype=torch.long)
    reference = {name: value for name, value in batch.items() if name.startswith("reference")}
    reference["reference_index"] = torch.tensor([1, 0, 2])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    tokens = connected.generate(prompts, mask, **reference, **options)
    labels = tokens.clone()
    labels[:, :4] = -100
    logits = connected.train()(tokens, labels=labels, **reference).logits
    assert torch.equal(logits[:, 3:-1].argmax(dim=-1), tokens[:, 4:])


def test_left_padded_generation_equals_each_row_alone(batch):
    connected = attach(training=False, scope="prompt_end")
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    prompts = batch["input_ids"][:2, :6] * mask
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    together = connected.generate(prompts, mask, **options)
    alone = connected.generate(prompts[:1, 2:], mask[:1, 2:], **options)
    assert torch.equal(together[0, 6:], alone[0, 4:])


def test_beams_keep_each_rows_reference(batch):
    connected = attach(training=False, paths="fused")
    prompts, mask = batch["input_ids"][:2, :4], torch.ones(2, 4, dtype=torch.long)
    reference = {name: batch[name][:2] for name in ("reference_input_ids", "reference_attention_mask")}
    options = {"max_new_tokens": 3, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    together = connected.generate(prompts, mask, **reference, **options)
    for row in range(2):
        one = {name: tensor[row : row + 1] for name, tensor in reference.items()}
        alone = connected.generate(prompts[row : row + 1], mask[row : row + 1], **one, **options)
        assert torch.equal(alone[0], together[row])


def test_a_copied_model_has_a_connection_of_its_own(batch):
    connected = attach(training=False)
    twin = copy.deepcopy(connected)
    for connection in twin.connections.values():
        connection.transform.up.weight.data.zero_()
    assert twin.wire is not connected.wire
    inputs = {"input_ids": batch["input_ids"]}
    assert not torch.allclose(twin(**inputs).logits, connected(**inputs).logits)
    assert torch.equal(connected(**inputs).logits, connected.model(**inputs).logits)
