"""The adaptive connection keeps the promises that the authors' code breaks."""

from __future__ import annotations

import pytest
import torch

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.model.adaptive import StreamingLeastSquares
from tests.conftest import tiny_llama


def attach(**options) -> ConnectedModel:
    connected = ConnectedModel.attach(tiny_llama(), ConnectionConfig(connection="adaptive", **options))
    torch.manual_seed(3)
    connected.adaptive.selector.weight.data.normal_()
    return connected


def test_inference_draws_no_noise(batch):
    connected = attach()
    connected.fit_transform([batch])
    prompts, mask = batch["input_ids"][:3, :4], torch.ones(3, 4, dtype=torch.long)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    torch.manual_seed(0)
    first = connected.generate(prompts, mask, **options)
    torch.manual_seed(1)
    assert torch.equal(first, connected.generate(prompts, mask, **options))


def test_batched_left_padded_generation_equals_each_row_alone(batch):
    connected = attach()
    connected.fit_transform([batch])
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = 0
    prompts = batch["input_ids"][:3, :6] * mask
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    together = connected.generate(prompts, mask, **options)
    for row in range(3):
        start = 6 - int(mask[row].sum())
        alone = connected.generate(prompts[row : row + 1, start:], mask[row : row + 1, start:], **options)
        assert torch.equal(together[row, 6:], alone[0, 6 - start :])


def test_generation_is_the_student_pass(batch):
    connected = attach()
    connected.fit_transform([batch])
    prompts, mask = batch["input_ids"][:3, :4], torch.ones(3, 4, dtype=torch.long)
    tokens = connected.generate(prompts, mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    labels = tokens.clone()
    labels[:, :4] = -100
    logits = connected.eval()(tokens, labels=labels).logits
    assert torch.equal(logits[:, 3:-1].argmax(dim=-1), tokens[:, 4:])


def test_rows_in_the_reference_language_are_left_alone(batch):
    connected = attach()
    connected.fit_transform([batch])
    prompts = batch["input_ids"][:2, :4]
    nobody = connected.eval()(prompts, connect=torch.zeros(2, dtype=torch.bool)).logits
    with connected.disable_adapter():
        base = connected(prompts).logits
    assert torch.equal(nobody, base)
    assert not torch.allclose(connected(prompts).logits, base)


def test_response_does_not_reach_the_choice(batch):
    connected = attach()
    connected.fit_transform([batch])
    changed = dict(batch, input_ids=batch["input_ids"].clone())
    response = batch["labels"] != -100
    changed["input_ids"][response] = (changed["input_ids"][response] + 7) % 61 + 3
    before, after = (connected.eval()(**b).logits for b in (batch, changed))
    first = response.int().argmax(dim=1)
    for row in range(4):
        assert torch.equal(before[row, : first[row]], after[row, : first[row]])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_with_checkpointing(use_reentrant, batch):
    connected = attach().train()

    def gradients() -> dict[str, torch.Tensor]:
        connected.zero_grad()
        connected(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in connected.named_parameters() if p.grad is not None}

    plain = gradients()
    assert any("selector" in name for name in plain)
    connected.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


def test_every_trainable_part_takes_part_in_a_batch_without_references(batch):
    connected = attach().train()
    connected(batch["input_ids"], batch["attention_mask"], batch["labels"]).loss.backward()
    assert connected.adaptive.selector.weight.grad is not None


def test_save_and_load(batch, tmp_path):
    connected = attach()
    connected.fit_transform([batch])
    connected.save_pretrained(tmp_path)
    again = ConnectedModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(connected.eval()(batch["input_ids"]).logits, again.eval()(batch["input_ids"]).logits)


def test_least_squares_finds_the_map_and_says_how_well():
    torch.manual_seed(0)
    truth = torch.eye(8) + 0.3 * torch.randn(8, 8)
    solver = StreamingLeastSquares(8)
    for _ in range(20):
        x = torch.randn(50, 8)
        solver.add(x, x @ truth + 0.01 * torch.randn(50, 8), torch.arange(50) % 10 == 0)
    fit = solver.solve()
    torch.testing.assert_close(fit.matrix, truth, atol=5e-3, rtol=0)
    assert fit.held_out == 100 and fit.error_held_out < 1e-3 < fit.error_identity
    x = torch.randn(200, 8)
    direct = float((x @ fit.matrix - x @ truth).square().sum() / (x @ truth).square().sum())
    assert direct < 1e-3


def test_least_squares_on_too_few_pairs_is_no_worse_than_doing_nothing():
    """Ten pairs in 64 dimensions: the authors' recipe; held out, its matrix was worse than none."""
    torch.manual_seed(0)
    solver = StreamingLeastSquares(64)
    x = torch.randn(20, 64)
    solver.add(x, x + 0.1 * torch.randn(20, 64), torch.arange(20) % 2 == 0)
    fit = solver.solve()
    assert fit.error_held_out <= fit.error_identity
