"""FlashAttention for rows packed into one sequence, by PyTorch's own kernel (`torch.nn.attention.varlen`).

Registered with transformers as the attention `torch_flash`, so that packed rows can be measured where the package
flash-attn is not installed. Needs a GPU and 16-bit values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

NAME = "torch_flash"


def register() -> str:
    """Register the attention and its mask; returns its name, for `attn_implementation`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **inputs: Any
) -> tuple[Tensor, None]:
    """Causal attention of rows packed into one sequence, (1, heads, T, D), or one a sequence, (B, heads, T, D).

    Args:
        mask: (B, T) of padded rows. inputs: of packed rows `cu_seq_lens_q` and `max_length_q`, or else `position_ids`
            (1, T) that begin at 0 with each row.
    """
    rows, _, width, _ = query.shape
    ends, longest = inputs.get("cu_seq_lens_q"), inputs.get("max_length_q")
    if ends is None or longest is None:
        positions = inputs.get("position_ids")
        if mask is not None:
            lengths = mask.sum(dim=1)
        elif rows == 1 and positions is not None:
            starts = (positions.flatten() == 0).nonzero()[:, 0]
            lengths = torch.cat([starts, starts.new_tensor([width])]).diff()
        else:
            lengths = torch.full((rows,), width, device=query.device)
        ends, longest = pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max())
    key, value = (part.repeat_interleave(module.num_key_value_groups, dim=1) for part in (key, value))
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    heads = [part.transpose(1, 2).flatten(0, 1).to(kind) for part in (query, key, value)]
    if mask is None:
        found = varlen_attn(*heads, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))
    else:
        real = mask.bool().flatten()
        heads = [part[real] for part in heads]
        some = varlen_attn(*heads, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))
        found = some.new_zeros(rows * width, *some.shape[1:]).masked_scatter(real[:, None, None], some)
    return found.unflatten(0, (rows, width)), None
