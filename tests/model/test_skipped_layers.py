"""Rows without an answer skip the layers above the last aligned one: the same loss and gradients for less work."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from cctuning import ConnectionConfig, UserError
from cctuning.connection.align import RecordedReferences
from cctuning.model.connected import ConnectedModel
from cctuning.model.sites import find_sites, unwrap
from tests.families import DENSE, FAMILIES, MOE, VOCABULARY, build

ANSWERED = [0, 3]  # of five rows


def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (5, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[3, 8:] = 0, 0
    labels = torch.full_like(ids, -100)
    for row in ANSWERED:
        labels[row, 5:8] = ids[row, 5:8]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "reference_row": torch.tensor([-1, 1, 0, 2, 3]),
    }


def connect(
    name, skip, align_loss="contrastive", align_at="residual", lora=False, prefix=False, checkpointing=None, **options
):
    model = build(name, **options)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    if lora:
        torch.manual_seed(0)
        peft = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, peft)
    if prefix:
        torch.manual_seed(0)
        model = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    config = ConnectionConfig(align_loss=align_loss, align_at=align_at, layers=[0, 1])
    connected = ConnectedModel.attach(model, config)
    vectors = torch.randn(4, 2, connected.width, generator=torch.Generator().manual_seed(1))
    connected.keep_recorded(RecordedReferences(vectors, connected.layers, vectors.device))
    connected.may_leave &= skip
    return connected.train()


def step(connected):
    seen = []
    last = find_sites(connected.model)[-1].layer
    handle = last.register_forward_hook(
        lambda _, given, output: seen.append((output[0] if isinstance(output, tuple) else output).shape[:2].numel())
    )
    torch.manual_seed(0)  # some families drop out
    result = connected(**batch(), loss_only=True)
    result.loss.backward()
    handle.remove()
    gradients = {name: p.grad for name, p in connected.named_parameters() if p.grad is not None}
    return result, gradients, seen[-1]  # before it padding_free may try the model


def same(one, other):
    for name in ("loss", "align_loss", "student_loss", "row_loss", "correct", "scored"):
        torch.testing.assert_close(getattr(one[0], name), getattr(other[0], name), msg=name)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", DENSE)
def test_loss_and_gradients_are_those_of_all_rows_in_all_layers(name):
    layers = "n_layers" if name == "mpt" else "n_layer" if name in ("gpt2", "gptj", "gpt_bigcode", "bloom") else None
    layers = layers or ("num_layers" if name == "xglm" else "num_hidden_layers")
    connected = connect(name, True, **{layers: 4})
    found = step(connected)
    same(step(connect(name, False, **{layers: 4})), found)
    rotary = getattr(unwrap(connected.model).config, "rope_parameters", None) is not None
    assert found[2] == 9 * (len(ANSWERED) if rotary else 5)


@pytest.mark.parametrize("how", [{}, {"checkpointing": False}, {"padding_free": True}], ids=str)
@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "hy_v4"])
def test_rows_stay_where_layers_are_given_more_than_activations(name, how):
    """Keys and values of lower layers, or several residual streams."""
    found = []
    for skip in (True, False):
        options = {key: value for key, value in how.items() if key != "padding_free"}
        connected = connect(name, skip, align_at="ffn" if name == "hy_v4" else "residual", **options)
        connected.padding_free, connected._packs = "padding_free" in how, True
        found.append(step(connected))
    same(*found)


def test_rows_stay_beside_a_prefix():
    """Its keys and values are a cache of all rows."""
    found = [step(connect("llama", skip, prefix=True, num_hidden_layers=4)) for skip in (True, False)]
    same(*found)
    assert found[0][2] == 9 * 5


def test_keys_and_values_of_layers_that_are_skipped_too_are_shared():
    found = [step(connect("gemma4", skip, num_kv_shared_layers=1)) for skip in (True, False)]
    same(*found)
    assert found[0][2] == 9 * len(ANSWERED)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("how", [{}, {"lora": True}, {"checkpointing": True}, {"checkpointing": False}], ids=str)
def test_with_lora_checkpointing_and_either_attention(how, attention):
    options = {"num_hidden_layers": 4, "align_loss": "standardized", "attn_implementation": attention}
    attention_of = options.pop("attn_implementation")
    pairs = []
    for skip in (True, False):
        connected = connect("gemma3", skip, **how, **options)
        unwrap(connected.model).set_attn_implementation(attention_of)
        pairs.append(step(connected))
    same(pairs[1], pairs[0])
    assert [pair[2] for pair in pairs] == [9 * len(ANSWERED), 9 * 5]


@pytest.mark.parametrize("how", [{}, {"lora": True}, {"checkpointing": True}], ids=str)
@pytest.mark.parametrize("align_loss", ["contrastive", "standardized"])
def test_without_padding(align_loss, how):
    """Rows with an answer then have sequences of their own."""
    results = []
    for skip, packed in ((False, False), (True, True), (False, True)):
        connected = connect("gemma3", skip, align_loss, num_hidden_layers=4, **how)
        connected.padding_free = packed
        results.append(step(connected))
    same(results[0], results[1])
    same(results[0], results[2])
    assert results[1][2] < results[2][2]


@pytest.mark.parametrize("name", sorted(MOE))
def test_experts_see_all_rows(name):
    """An auxiliary loss is taken over all rows; where a family has none, skipping changes nothing either."""
    assert name in FAMILIES
    same(step(connect(name, False)), step(connect(name, True)))


@pytest.mark.parametrize(
    ("name", "how", "rows"),
    [
        ("llama", {}, 0),
        ("llama", {"lora": True, "checkpointing": False}, 0),
        ("llama", {"checkpointing": True}, 1),  # reentrant: one row goes on
        ("opt", {}, 0),  # its positions are learned
        ("mixtral", {}, 0),
        ("mixtral", {"output_router_logits": True, "router_aux_loss_coef": 0.5}, 5),
    ],
)
def test_a_batch_without_any_answer_ends_at_the_last_aligned_layer(name, how, rows):
    """As those of a language pack: the lower layers' gradients are the same, and layers above hardly run."""
    found = []
    for skip in (True, False):
        connected, ran = connect(name, skip, num_hidden_layers=4, **how), []
        through = None if skip else connected.model.__call__  # a wrapped model runs to its end
        last = find_sites(connected.model)[-1].layer
        last.register_forward_pre_hook(lambda _, given, ran=ran: ran.append(len(given[0])))
        torch.manual_seed(0)
        inputs = batch() | {"labels": torch.full((5, 9), -100)}
        connected(**inputs, loss_only=True, through=through).loss.backward()
        gradients = {
            name: p.grad for name, p in connected.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        found.append((max(ran, default=0), gradients))
    assert found[0][0] == rows and found[1][0] == 5
    assert found[0][1].keys() == found[1][1].keys()
    for parameter, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][parameter], atol=1e-6, rtol=1e-4, msg=parameter)


def test_logits_that_are_asked_for_are_those_of_all_rows():
    connected = connect("llama", True, num_hidden_layers=4)
    assert connected(**batch()).logits.shape[:2] == (5, 9)


def test_the_load_balance_of_experts_weighs_as_without_an_alignment():
    connected = connect("mixtral", True, output_router_logits=True, router_aux_loss_coef=0.5)
    one = batch() | {"reference_row": torch.tensor([-1, 1, -1, -1, -1])}
    found = connected(**one, loss_only=True)
    parts = found.student_loss + 0.5 * found.aux_loss + connected.config.weight * found.align_loss
    torch.testing.assert_close(found.loss.detach(), parts.detach())


def test_numbers_of_references_that_were_not_recorded_are_an_error():
    """In a loop of one's own; otherwise the rows would train without the alignment."""
    connected = connect("llama", True)
    connected.recorded = None
    with pytest.raises(UserError, match=r"reference_row: .*keep_recorded"):
        connected(**batch())
