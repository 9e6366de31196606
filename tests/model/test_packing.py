"""Rows run without padding between them: losses and gradients of padded rows, and no row reads another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from packaging.version import parse
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.model.packing import best_fit, pack
from cctuning.model.recorded import Prompts, record
from tests.conftest import shake, tiny_llama
from tests.families import COMMON, FAMILIES, build

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LENGTHS = (12, 5, 9, 2, 7)  # in sequences of 12, and one position of padding
# ALiBi is counted along the sequence; the others do not pass the positions to the mask of sdpa and eager.
CANNOT = {"bloom", "mpt", "opt", "xglm", "biogpt", "gpt_oss"}
if parse(transformers.__version__) < parse("5.24"):
    CANNOT.add("falcon")

RECIPES = {
    "none": {"connection": "none"},
    "align": {"connection": "align"},
    "standardized": {"connection": "align", "align_loss": "standardized", "align_pool": "text_last"},
    "ffn": {"connection": "align", "align_loss": "relative", "align_at": "ffn", "align_pool": "last"},
    "gated": {"connection": "gated"},
    "student": {"connection": "gated", "paths": "student", "align_loss": "standardized"},
    "both": {"connection": "gated", "paths": "both", "distill_weight": 0.5},
    "mean": {"connection": "gated", "alignment": "mean", "scope": "response"},
    "prompt_end": {"connection": "gated", "scope": "prompt_end", "transform": "nonlinear"},
    "adaptive": {"connection": "adaptive"},
    "live": {"connection": "gated", "reference_weights": "current", "alignment": "attention"},
}


def rows(answered: bool = True) -> dict[str, Tensor]:
    """Rows of uneven length; the second and fourth have no answer, as parallel text, and the last no reference."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
        if answered and row % 2 == 0:
            labels[row, length - 3 : length] = ids[row, length - 3 : length]
    prompts = [length - 3 * (row % 2 == 0 and answered) for row, length in enumerate(LENGTHS)]
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": labels,
        "text": torch.tensor([[1, end] for end in prompts]),
        "row": torch.arange(len(LENGTHS)) + 7,
    }


def references(config: ConnectionConfig) -> tuple[Prompts, dict[str, Tensor]]:
    """Four references; as the batch names them, recorded or live."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 64, (4, 6), generator=generator)
    which = torch.tensor([0, 1, 2, 3, -1])
    prompts = Prompts(ids.tolist(), torch.tensor([[1, 6]] * 4))
    if config.reference_weights == "current":
        return prompts, {"reference_input_ids": ids, "reference_index": which}
    return prompts, {"reference_row": which}


def connected(
    recipe: str, attention: str = "sdpa", lora: bool = False, device: str = "cpu"
) -> tuple[ConnectedModel, dict[str, Tensor]]:
    """A model with its references recorded, in training mode, and what a batch says of them."""
    config = ConnectionConfig(**RECIPES[recipe]).settled(True)
    model: Any = tiny_llama(layers=3, attn_implementation=attention)
    if lora:
        torch.manual_seed(4)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    made = ConnectedModel.attach(model.to(device), config)
    shake(made, 0.3)
    prompts, named = references(config)
    if "reference_row" in named and config.connection != "none":
        made.keep_recorded(record(made, prompts))
    made.total_steps = 2
    return made.train(), named


def gradients(made: ConnectedModel, batch: dict[str, Tensor], packed: bool) -> tuple[Any, dict[str, Tensor]]:
    made.zero_grad()
    made.padding_free = packed
    fused = torch.tensor([True, False, True, False, True]) if made.config.paths == "sampled" else None
    fused = fused if fused is None else fused.to(batch["input_ids"].device)
    output = made(**batch, fused_rows=fused, loss_only=True)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def assert_same(made: ConnectedModel, batch: dict[str, Tensor]) -> None:
    padded, expected = gradients(made, batch, packed=False)
    packed, found = gradients(made, batch, packed=True)
    for name in ("loss", "student_loss", "fused_loss", "align_loss", "identity_loss", "distill_loss", "row_loss"):
        one, other = getattr(padded, name), getattr(packed, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(other, one, **CLOSE)
    assert int(padded.correct) == int(packed.correct) and int(padded.scored) == int(packed.scored)
    assert expected and expected.keys() == found.keys()
    close(found, expected)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each tensor to 1e-5 of its largest value."""
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-9, name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_and_gradients_are_those_of_padded_rows(recipe, lora, attention):
    made, named = connected(recipe, attention, lora)
    assert_same(made, rows() | named)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("recipe", ["none", "align", "gated", "both"])
def test_also_with_gradient_checkpointing(recipe, reentrant):
    made, named = connected(recipe)
    plain, expected = gradients(made, rows() | named, packed=True)
    made.model.enable_input_require_grads()
    made.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed, found = gradients(made, rows() | named, packed=True)
    torch.testing.assert_close(checkpointed.loss, plain.loss, **CLOSE)
    close(found, expected)


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("recipe", ["align", "standardized", "gated", "student"])
def test_a_batch_of_parallel_text_alone(recipe, reentrant):
    """No row has an answer: an alignment ends the forward early."""
    made, named = connected(recipe)
    if reentrant is not None:
        made.model.enable_input_require_grads()
        made.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(made, rows(answered=False) | named)


@pytest.mark.parametrize("recipe", ["none", "align", "gated", "both"])
def test_evaluation_and_logits_are_those_of_padded_rows(recipe):
    made, named = connected(recipe)
    made.eval()
    given = rows() | named
    if "reference_row" in given:
        given.pop("reference_row")
    padded = made(**given)
    made.padding_free = True
    packed = made(**given)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(packed.logits[real], padded.logits[real], **CLOSE)
    torch.testing.assert_close(packed.loss, padded.loss, **CLOSE)
    torch.testing.assert_close(packed.row_loss, padded.row_loss, **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_does_not_see_the_others(attention):
    made, named = connected("none", attention)
    made.padding_free = True
    batch = rows()
    before = made(**batch, **named, loss_only=True).row_loss
    batch["input_ids"][0, :12] = 3 + (batch["input_ids"][0, :12] + 11) % 60
    after = made(**batch, **named, loss_only=True).row_loss
    assert before[0] != after[0] and torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_packs_or_says_that_it_cannot(name):
    made = ConnectedModel.attach(build(name), ConnectionConfig(connection="none")).train()
    made.model.eval()  # some have dropout
    if name in CANNOT:
        made.padding_free = True
        with pytest.raises(UserError, match="cannot run packed rows: the scores of a row") as raised:
            made(**rows())
        assert "\n" not in str(raised.value)
        return
    assert_same(made, rows())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba", {"state_size": 4}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("recurrent_gemma", {"lru_width": 32, "block_types": ["recurrent", "attention"]}),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}),
    ],
)
def test_a_state_that_runs_on_from_row_to_row_is_an_error(name, options):
    config = AutoConfig.for_model(name, **{**COMMON, **options})
    made = ConnectedModel.attach(AutoModelForCausalLM.from_config(config), ConnectionConfig(connection="none"))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    with pytest.raises(UserError, match="cannot run packed rows: the scores of a row") as raised:
        made.check_padding_free()
    assert "flash" not in str(raised.value)


@pytest.mark.parametrize("name", ["gemma3", "mistral", "exaone4"])
def test_a_sliding_window_is_counted_within_a_row(name):
    made = ConnectedModel.attach(build(name, sliding_window=4), ConnectionConfig(connection="none")).train()
    assert_same(made, rows())


def test_experts_are_balanced_over_tokens_and_not_padding():
    model = build("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    made = ConnectedModel.attach(model, ConnectionConfig(connection="none")).train()
    assert_same(made, rows())
    assert gradients(made, rows(), packed=True)[0].aux_loss is not None


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs flash-attn and a GPU that it runs on")
@pytest.mark.parametrize("recipe", ["none", "align", "gated"])
def test_flash_attention_reads_rows_of_varying_length(recipe):
    made, named = connected(recipe, "flash_attention_2", device="cuda")
    made.to(torch.bfloat16)
    batch = {key: value.cuda() for key, value in (rows() | named).items()}
    padded, expected = gradients(made, batch, packed=False)
    packed, found = gradients(made, batch, packed=True)
    torch.testing.assert_close(packed.loss, padded.loss, rtol=2e-2, atol=1e-2)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=5e-2, atol=2e-2)


def varlen(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any) -> Any:
    """FlashAttention's two interfaces in plain torch: row by row by `cu_seq_lens_q`, or padded rows by a mask."""
    key, value = (part.repeat_interleave(module.num_key_value_groups, dim=1) for part in (key, value))
    ends = kwargs.get("cu_seq_lens_q")
    width = query.shape[2]
    if ends is None:
        seen = torch.ones(width, width, dtype=torch.bool).tril() & (mask is None or mask.bool()[:, None, None])
    else:
        assert mask is None and len(query) == 1 and int(ends[-1]) == width and ends.equal(kwargs["cu_seq_lens_k"])
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == int(ends.diff().max())
        row = torch.bucketize(torch.arange(width), ends, right=True)
        seen = (row[:, None] == row) & torch.ones(width, width, dtype=torch.bool).tril()
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1).nan_to_num() @ value).transpose(1, 2), None


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("answered", [True, False], ids=["answers", "parallel text"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_varlen_interface_of_flash_attention(recipe, answered, checkpointing, monkeypatch):
    """As a GPU would be called. Rows without an answer come last, and leave out the layers above the aligned ones."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen)
    if checkpointing is not None and (recipe == "adaptive" or not answered):
        pytest.skip("tried without")
    made, named = connected(recipe)
    made.model.config._attn_implementation = "flash_attention_2"
    lengths = []
    made.model.model.layers[-1].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    if checkpointing is not None:
        made.model.enable_input_require_grads()
        made.model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    if recipe == "none" and not answered:
        pytest.skip("nothing to learn")
    assert_same(made, rows(answered) | named)
    leaving = bool(made.aligned) and answered
    assert not leaving or lengths[-1] == LENGTHS[0] + LENGTHS[2] + LENGTHS[4]


def test_flash_attention_is_told_where_rows_begin():
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    batch = rows()
    packed = pack(batch["input_ids"], batch["attention_mask"], model.config)
    assert packed.inputs["input_ids"].shape == (1, sum(LENGTHS)) and "attention_mask" not in packed.inputs
    assert packed.inputs["cu_seq_lens_q"].tolist() == [0, 12, 17, 26, 28, 35]
    assert packed.inputs["cu_seq_lens_q"].dtype == torch.int32 and packed.inputs["max_length_k"] == 12


def test_rows_fill_bins_best_fit_decreasing():
    assert sorted(map(sorted, best_fit([6, 5, 4, 3, 2], 10))) == [[0, 2], [1, 3, 4]]
    assert best_fit([12, 3], 10) == [[0], [1]]  # longer than a bin: alone
    draw = random.Random(3)
    lengths = [draw.randrange(1, 40) for _ in range(300)]
    bins = best_fit(lengths, 64)
    assert sorted(place for one in bins for place in one) == list(range(300))
    assert max(sum(lengths[place] for place in one) for one in bins) <= 64
    assert len(bins) <= 1.05 * sum(lengths) / 64 + 1
    order = draw.sample(range(300), 300)
    assert len(best_fit([lengths[place] for place in order], 64)) == len(bins)
