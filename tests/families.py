"""A zoo: one tiny random model per decoder family, with weights far enough from zero to tell right from wrong.

transformers starts weights at 0.02 and biases at 0, which would let a fold that forgets a bias pass. So every matrix
and every bias is drawn anew, from a seed that depends on the family's name alone.
"""

from __future__ import annotations

import copy
import functools
import zlib
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 64
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
# name -> (model_type, options over COMMON); None drops an option that the family's config does not know.
DENSE = {
    "llama": ("llama", {"mlp_bias": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {}),
    "phi": ("phi", {}),
    "olmo2": ("olmo2", {}),
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "falcon": (
        "falcon",
        {"head_dim": None, "ffn_hidden_size": 48, "bias": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("biogpt", {}),
    "cohere": ("cohere", {}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
    "glm4": ("glm4", {}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {}),
    "exaone4": ("exaone4", {"sliding_window": 16}),
    "nemotron": ("nemotron", {}),
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MOE = {
    "mixtral": ("mixtral", EXPERTS),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "gpt_oss": ("gpt_oss", EXPERTS | {"sliding_window": 16}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "head_dim": 4,
            "num_key_value_heads": 4,
        },
    ),
    "llama4": (
        "llama4_text",
        EXPERTS | {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1},
    ),
    "granitemoe": ("granitemoe", EXPERTS),
}
FAMILIES = DENSE | MOE
# Families whose layers are given more than one activation a position, or keys and values of lower layers.
GEMMA = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": 4 * ["full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
UNUSUAL = {
    "gemma3n": (
        "gemma3n_text",
        GEMMA | {"laurel_rank": 4, "altup_num_inputs": 5, "activation_sparsity_pattern": 4 * [0.0]},
    ),
    "gemma4": ("gemma4_text", GEMMA | {"global_head_dim": 8}),
    "hy_v4": ("hy_v4", {"num_hidden_layers": 4}),
    "dory": ("dory", {"num_hidden_layers": 4}),
}


@functools.cache
def _prototype(name: str, more: tuple[tuple[str, Any], ...]) -> PreTrainedModel:
    model_type, options = (FAMILIES | UNUSUAL)[name]
    options = options | dict(more)
    options = {key: value for key, value in (COMMON | options).items() if value is not None}
    config = AutoConfig.for_model(model_type, **options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        elif key.endswith(("bias", "sinks")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        if key.endswith("_bias"):  # of experts: (E, d)
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def build(name: str, **options: Any) -> PreTrainedModel:
    """A fresh copy of the family's tiny model, fp32, in eval mode; the same weights at each call.

    Args:
        options: over the family's own in `FAMILIES` or `UNUSUAL`.
    """
    return copy.deepcopy(_prototype(name, tuple(sorted(options.items()))))


def multimodal() -> PreTrainedModel:
    """A Gemma 3 that reads images too, with two layers of text."""
    text = {key: value for key, value in COMMON.items() if key != "tie_word_embeddings"}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
