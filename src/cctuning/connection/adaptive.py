"""The adaptive connection: what the authors' code of the paper does, without its errors (docs/method/paper-code.md).

The choice is argmax at inference (no noise is drawn), and the noise of training is a function of seed, step and row.
The matrix is fitted by streaming least squares, in the memory of a few d x d matrices for any number of pairs: only
products are kept, summed in fp64. A tenth of the pairs is held out; their products are summed separately and give the
held-out error of any matrix. The ridge pulls towards the identity, and its strength is the one with the
smallest held-out error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # relative to the mean eigenvalue of the Gram matrix


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


@dataclass
class Fit:
    """A fitted matrix. Errors are relative: `||X M - Y||^2 / ||Y||^2`.

    Attributes:
        matrix: (d, d), fp32, row convention. pairs, held_out: numbers of pairs fitted on and held out.
        error, error_held_out: of the matrix. error_identity: held out, of doing nothing. ridge: the one chosen.
    """

    matrix: Tensor
    pairs: int
    held_out: int
    error: float
    error_held_out: float
    error_identity: float
    ridge: float


class _Products:
    """X'X, X'Z, tr(Z'Z), tr(Y'Y) and the number of pairs, where Z = Y - X."""

    def __init__(self, size: int) -> None:
        self.xx = torch.zeros(size, size, dtype=torch.float64)
        self.xz = torch.zeros(size, size, dtype=torch.float64)
        self.zz, self.yy, self.count = 0.0, 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Multiply pairs in fp32 (fp64 if they are), on their device; the sums stay in main memory."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        z = y - x
        with torch.autocast(x.device.type, enabled=False):
            self.xx += (x.T @ x).cpu()
            self.xz += (x.T @ z).cpu()
        self.zz += float(torch.linalg.vector_norm(z, dtype=torch.float64).square())
        self.yy += float(torch.linalg.vector_norm(y, dtype=torch.float64).square())
        self.count += len(x)

    def error(self, change: Tensor) -> float:
        """`||X D - Z||^2 / ||Y||^2` of the change D; of D = 0 that of the identity."""
        if not self.count:
            return float("nan")
        missed = float((change * (self.xx @ change - 2 * self.xz)).sum()) + self.zz
        return max(0.0, missed) / max(self.yy, 1e-30)


class StreamingLeastSquares:
    """`M = I + D`, `D = argmin ||X D - (Y - X)||^2 + r ||D||^2`, solved from `(X'X + r) D = X'(Y - X)`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fitted, self.held_out = _Products(size), _Products(size)

    def add(self, x: Tensor, y: Tensor, hold_out: Tensor) -> None:
        """Add pairs `x`, `y` (N, d); those of `hold_out` (N,) bool only count in the held-out error."""
        self.fitted.add(x[~hold_out], y[~hold_out])
        self.held_out.add(x[hold_out], y[hold_out])

    def solve(self) -> Fit:
        """The matrix with the smallest held-out error over `RIDGES`, or the identity if none is better."""
        fitted, held_out = self.fitted, self.held_out
        judge = held_out if held_out.count else fitted
        identity = torch.zeros_like(fitted.xx)
        best = (judge.error(identity), float("inf"), identity)
        for ridge in RIDGES if fitted.count else ():
            gram = fitted.xx.clone()
            gram.diagonal().add_(ridge * float(fitted.xx.diagonal().mean()))
            change = torch.cholesky_solve(fitted.xz, torch.linalg.cholesky(gram))
            best = min(best, (judge.error(change), ridge, change), key=lambda tried: tried[0])
        _, ridge, change = best
        return Fit(
            (torch.eye(self.size, dtype=torch.float64) + change).float(),
            fitted.count,
            held_out.count,
            fitted.error(change),
            held_out.error(change),
            held_out.error(identity),
            ridge,
        )
