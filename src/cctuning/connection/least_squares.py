"""Least squares from a stream: memory is that of two d x d matrices, however many pairs there are.

Everything is kept as products, in fp64: a tenth of the pairs is held out into products of its own, from which the
held-out error of any matrix follows without seeing a pair again. The ridge pulls towards the identity (towards doing
nothing), and its strength is the one with the smallest held-out error; with too few pairs that is a strong one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # relative to the mean eigenvalue of the Gram matrix


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
    """X'X, X'Y, tr(Y'Y) and the count of the pairs seen."""

    def __init__(self, size: int) -> None:
        self.xx = torch.zeros(size, size, dtype=torch.float64)
        self.xy = torch.zeros(size, size, dtype=torch.float64)
        self.yy, self.count = 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double().cpu(), y.double().cpu()
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float(y.square().sum())
        self.count += x.shape[0]

    def error(self, matrix: Tensor) -> float:
        if not self.count:
            return float("nan")
        missed = (matrix * (self.xx @ matrix)).sum() - 2 * (matrix * self.xy).sum() + self.yy
        return max(0.0, float(missed)) / max(self.yy, 1e-30)


class StreamingLeastSquares:
    """`M = argmin ||X M - Y||^2 + r ||M - I||^2`, solved from `(X'X + r) (M - I) = X'Y - X'X`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fitted, self.held_out = _Products(size), _Products(size)

    def add(self, x: Tensor, y: Tensor, hold_out: Tensor) -> None:
        """Take pairs in: `x`, `y` (N, d); `hold_out` (N,) bool says which are kept for the error alone."""
        self.fitted.add(x[~hold_out], y[~hold_out])
        self.held_out.add(x[hold_out], y[hold_out])

    def solve(self) -> Fit:
        """The matrix with the smallest held-out error over `RIDGES`; the identity, where none does better than it."""
        identity = torch.eye(self.size, dtype=torch.float64)
        best, chosen = identity, float("inf")
        judge = self.held_out if self.held_out.count else self.fitted
        scale = float(self.fitted.xx.diagonal().mean())
        for ridge in RIDGES if self.fitted.count else ():
            step = torch.linalg.solve(
                self.fitted.xx + ridge * scale * identity, self.fitted.xy - self.fitted.xx, left=True
            )
            if judge.error(identity + step) < judge.error(best):
                best, chosen = identity + step, ridge
        return Fit(
            best.float(),
            self.fitted.count,
            self.held_out.count,
            self.fitted.error(best),
            self.held_out.error(best),
            self.held_out.error(identity),
            chosen,
        )
