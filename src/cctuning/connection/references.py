"""Which activation of the reference a position of the row is offered.

What a layer keeps of the reference is as small as the choice allows: one vector a reference for `anchor` and `mean`,
all of them, with the FFN inputs they are found by, for `attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cctuning.connection.registry import Registry

LayerMemory = tuple[Tensor, Tensor | None]  # values that are offered, and keys to find them by (attention)


@dataclass(frozen=True)
class Reference:
    """R distinct references, padded on either side to S tokens: `mask` (R, S) bool of the real tokens, and `last` (R,)
    the position of each one's last."""

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


class Alignment:
    """Base class: what a layer keeps of the reference pass, and what it offers to a position. Has no weights.

    Register a class of your own with `@register_alignment("name")`. With one vector a reference (`recordable`) only
    `remember` is needed, and the references can be recorded before training.
    """

    recordable = True

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        """What a layer keeps of the FFN outputs (R, S, d) and inputs (R, S, k) of the reference pass: values (R, d)
        and None; where not `recordable`, whatever `offer` reads."""
        raise NotImplementedError

    def offer(self, memory: LayerMemory, which: Tensor, queries: Tensor, reference: Reference | None) -> Tensor:
        """The reference activation (N, d) of each connected position, from what `remember` returned.

        Args:
            which: (N,) reference of each position. queries: (N, k) FFN inputs at the positions.
        """
        return memory[0][which]


ALIGNMENTS = Registry("alignment", Alignment)
register_alignment = ALIGNMENTS.register


@register_alignment("anchor")
class Anchor(Alignment):
    """The last token of the reference."""

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        return output[torch.arange(output.shape[0], device=output.device), reference.last], None


@register_alignment("mean")
class Mean(Alignment):
    """The mean over the tokens of the reference."""

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        weights = reference.mask.to(output.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("rs,rsd->rd", weights, output), None


@register_alignment("attention")
class Attention(Alignment):
    """A mean weighted by the similarity of FFN inputs: `softmax_s(x_t x_s / sqrt(k))` over the tokens s."""

    recordable = False

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        return output, inputs

    def offer(self, memory: LayerMemory, which: Tensor, queries: Tensor, reference: Reference | None) -> Tensor:
        values, keys = memory
        assert keys is not None and reference is not None
        # One product with the tokens of all references, masked to the row's own: (N, R*S), not copies of (N, S, k).
        scores = queries.float() @ keys.flatten(0, 1).float().T / math.sqrt(queries.shape[-1])
        owner = torch.arange(keys.shape[0], device=keys.device).repeat_interleave(keys.shape[1])
        allowed = (owner[None, :] == which[:, None]) & reference.mask.flatten()[None, :]
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=1)
        return weights.to(values.dtype) @ values.flatten(0, 1)
