"""Alignment: which reference activation each position of a row is offered.

A layer's memory of the reference pass is kept as small as the alignment allows: one vector a reference for `anchor`
and `mean`, all of them (with the FFN inputs they are found by) only for `attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LayerMemory = tuple[Tensor, Tensor | None]  # offered values, and keys to find them by (attention)


@dataclass(frozen=True)
class Reference:
    """The reference batch: R distinct references, right- or left-padded to S tokens.

    Attributes:
        mask: (R, S) bool, true at real tokens.
        last: (R,) int64, position of each reference's last real token: the anchor. Under padding that is not -1.
    """

    mask: Tensor
    last: Tensor

    @classmethod
    def from_mask(cls, attention_mask: Tensor) -> Reference:
        """From an attention mask (R, S) of any integer or bool type."""
        mask = attention_mask.bool()
        return cls(mask, last_real(mask))


def last_real(mask: Tensor) -> Tensor:
    """Position (R,) of the last true entry of each row of `mask` (R, S)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).argmax(dim=1) if mask.shape[1] else mask.new_zeros(mask.shape[0], dtype=torch.long)


def remember(alignment: str, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
    """What a layer keeps of the reference pass.

    Args:
        alignment: `anchor`, `mean` or `attention`.
        output: (R, S, d) FFN outputs of the reference pass.
        inputs: (R, S, k) FFN inputs of the reference pass; read by `attention` only.
        reference: the batch's masks.

    Returns:
        Values (R, d) and None; for `attention` values (R, S, d) and keys (R, S, k).
    """
    if alignment == "anchor":
        return output[torch.arange(output.shape[0], device=output.device), reference.last], None
    if alignment == "mean":
        weights = reference.mask.to(output.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("rs,rsd->rd", weights, output), None
    return output, inputs


def offer(memory: LayerMemory, which: Tensor, queries: Tensor, reference: Reference | None) -> Tensor:
    """The reference activation offered to each connected position.

    Args:
        memory: of this layer, as `remember` returned it.
        which: (N,) reference row of each connected position.
        queries: (N, k) FFN inputs at the connected positions; read by `attention` only.
        reference: the batch's masks; read by `attention` only.

    Returns:
        (N, d).
    """
    values, keys = memory
    if keys is None or reference is None:
        return values[which]
    # One product against every reference's tokens, masked to the row's own: (N, R*S) instead of copies (N, S, k).
    scores = queries.float() @ keys.flatten(0, 1).float().T / math.sqrt(queries.shape[-1])
    owner = torch.arange(keys.shape[0], device=keys.device).repeat_interleave(keys.shape[1])
    allowed = (owner[None, :] == which[:, None]) & reference.mask.flatten()[None, :]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=1)
    return weights.to(values.dtype) @ values.flatten(0, 1)
