"""Where the connection acts: the exceptions of the table, and families that have no place for it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.errors import UserError
from cctuning.model.passes import Batch
from cctuning.model.sites import find_sites, unwrap
from tests.conftest import paired_batch
from tests.families import build


def bare(model_type: str, **options: int) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba", "rwkv"])
def test_a_family_without_an_ffn_is_refused_by_name_and_reason(family: str) -> None:
    model = bare(family, num_hidden_layers=2, vocab_size=64)
    with pytest.raises(UserError, match=rf"model family {family}: not supported: .*(has no FFN|gate)"):
        find_sites(model)


def test_an_encoder_decoder_is_refused() -> None:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(num_layers=2, d_model=32, d_ff=48, vocab_size=64))
    with pytest.raises(UserError, match=r"model family t5: .*encoder-decoder"):
        find_sites(model)


def test_an_unknown_layer_is_refused_with_what_was_looked_for() -> None:
    model = bare("bert", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(UserError, match=r"model family bert: .*layer 0 .BertLayer. has no FFN: no child .* mlp"):
        find_sites(model)


def test_something_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a transformers PreTrainedModel .* got Linear"):
        find_sites(nn.Linear(2, 2))


def test_layers_that_share_an_ffn_are_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(UserError, match=r"model family llama: .*share one FFN"):
        find_sites(model)


def test_bloom_in_slices_is_refused() -> None:
    with pytest.raises(UserError, match="slow_but_exact"):
        find_sites(build("bloom", pretraining_tp=2, slow_but_exact=True))


def test_layers_that_run_several_times_are_refused() -> None:
    with pytest.raises(UserError, match=r"model family dory: .*several times"):
        find_sites(build("dory"))


def references_of(family: str, **options: str) -> tuple[list[torch.Tensor], torch.Tensor, Batch]:
    """Outputs of layer 1 in a reference pass, and what is kept of them."""
    connected = ConnectedModel.attach(build(family), ConnectionConfig(layers=[1], align_pool="last", **options))
    seen: list[torch.Tensor] = []
    find_sites(connected.model)[1].layer.register_forward_hook(lambda *given: seen.append(given[-1]))
    batch = Batch.take(paired_batch())
    return seen, connected.reference_pass(batch).memory[1][0], batch


def test_of_the_streams_of_gemma_3n_the_active_one_is_aligned() -> None:
    seen, kept, batch = references_of("gemma3n")
    last = batch.reference_attention_mask.sum(dim=1) - 1
    torch.testing.assert_close(kept, seen[0][0][torch.arange(3), last])


def test_other_streams_are_aligned_at_ffn_blocks_alone() -> None:
    """Positions are numbered as if there were one, so the activations of others would be taken."""
    with pytest.raises(UserError, match=r"layer 1: .* 21 positions, got shape \(3, 7, 4, 32\).* align_at: ffn"):
        references_of("hy_v4")
    assert references_of("hy_v4", align_at="ffn")[1].shape == (3, 32)


def test_layers_that_differ_are_resolved_one_by_one() -> None:
    dense, sparse = find_sites(build("deepseek_v3"))
    assert [part.name for part in dense.projections] == ["model.layers.0.mlp.down_proj"]
    assert [(part.name, part.kind) for part in sparse.projections] == [
        ("model.layers.1.mlp.experts", "experts"),
        ("model.layers.1.mlp.shared_experts.down_proj", "linear"),
    ]


def test_fused_experts_know_their_layout_and_biases() -> None:
    (experts,) = find_sites(build("gpt_oss"))[0].projections
    assert (experts.weight, experts.bias, experts.transposed) == ("down_proj", "down_proj_bias", True)
    assert find_sites(build("llama4"))[1].projections[0].transposed
    assert not find_sites(build("mixtral"))[0].projections[0].transposed


@pytest.mark.parametrize(("family", "target"), [("llama", "down_proj"), ("opt", "fc2"), ("gpt2", "mlp.c_proj")])
def test_sites_of_a_peft_model_are_named_as_in_the_model_without(family: str, target: str) -> None:
    plain = find_sites(build(family))
    model = get_peft_model(build(family), LoraConfig(target_modules=[target], fan_in_fan_out=family == "gpt2"))
    wrapped = find_sites(model)
    for before, after in zip(plain, wrapped, strict=True):
        assert [part.name for part in after.projections] == [part.name for part in before.projections]
        assert [(part.kind, part.bias) for part in after.projections] == [
            (part.kind, part.bias) for part in before.projections
        ]
        assert isinstance(after.projections[0].module, LoraLayer)
        assert unwrap(model).get_submodule(after.projections[0].name) is after.projections[0].module
