"""The adaptive connection: what the authors' code of the paper does, without its errors (docs/method/paper-code.md).

The choice is argmax at inference (no noise is drawn), the noise of training is a function of seed, step and row, and
the matrix is fitted with a held-out error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveConnection(nn.Module):
    """Choose one layer of the reference, and add its activation after the first layer.

    e_l in R^d                                   FFN output of layer l at the reference's last token
    s = D(mean_l (e_l + x)), D: d -> L           x: embedding of the row's last prompt token
    k = argmax_l s_l                             in training: straight-through Gumbel-softmax
    h_1 <- h_1 + e_k                             output of the first layer, at the row's last prompt token
    e_l ~ h_l M                                  at inference: from the row's own FFN outputs, one M for all layers

    Source: arXiv 2506.00875, as its authors' code implements it. Cannot be merged.
    """

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.selector = nn.Linear(size, layers, bias=False)
        self.matrix = nn.Linear(size, size, bias=False)  # M transposed; fitted, not trained
        nn.init.eye_(self.matrix.weight)
        self.matrix.weight.requires_grad_(False)
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def set_matrix(self, matrix: Tensor) -> None:
        """Use the fitted M (d, d), row convention."""
        self.matrix.weight.data.copy_(matrix.T)
        self.fitted.fill_(True)

    def forward(
        self, vectors: Tensor, embedding: Tensor, own: bool, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The activation to add (N, d), and the layers chosen (N,).

        Args:
            vectors: (N, L, d) FFN outputs at the last token of the reference or of the row's own prompt.
            embedding: (N, d) of the row's last prompt token.
            own: the vectors are the row's own, so they go through M.
            noise: (N, L) uniform in [0, 1) for the Gumbel noise of training; None: argmax.
        """
        vectors = vectors.to(self.selector.weight.dtype)
        if own:
            vectors = self.matrix(vectors)
        scores = self.selector((vectors + embedding[:, None].to(vectors.dtype)).mean(dim=1))
        if noise is None:
            chosen = scores.argmax(dim=-1)
            return vectors[torch.arange(len(chosen), device=chosen.device), chosen], chosen
        gumbel = -torch.log(-torch.log(noise.clamp(1e-10, 1 - 1e-7)))
        soft = (scores.float() + gumbel.to(scores.device)).softmax(dim=-1)
        chosen = soft.argmax(dim=-1)
        hard = nn.functional.one_hot(chosen, soft.shape[-1]).to(soft.dtype)
        weights = (hard + soft - soft.detach()).to(vectors.dtype)  # forward: hard; backward: soft
        return torch.einsum("nl,nld->nd", weights, vectors), chosen
