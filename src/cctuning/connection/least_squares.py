"""Least squares from a stream: memory is that of two d x d matrices, however many pairs there are.

Everything is kept as products, summed in fp64. A tenth of the pairs is held out into products of its own, from which
the held-out error of any matrix follows without seeing a pair again. The ridge pulls towards the identity (towards
doing nothing), and its strength is the one with the smallest held-out error; with too few pairs that is a strong one.

Four things make it fast (bench/fitting.py): pairs are gathered into blocks of `BLOCK` before they are multiplied, the
blocks are multiplied in fp32, of the symmetric product only the panels on and above the diagonal are, and no stronger
ridge is tried once one has been worse than the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # relative to the mean eigenvalue of the Gram matrix
BLOCK = 4096  # pairs multiplied at a time
PANEL = 256  # rows of the symmetric product made at a time


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
    """X'X, X'Y, tr(Y'Y) and the count of the pairs seen; all of them after `finish`."""

    def __init__(self, size: int) -> None:
        self.xx = torch.zeros(size, size, dtype=torch.float64)
        self.xy = torch.zeros(size, size, dtype=torch.float64)
        self.yy, self.count = 0.0, 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        self.count += x.shape[0]
        for start in range(0, x.shape[0], BLOCK):
            self.waiting.append((x[start : start + BLOCK], y[start : start + BLOCK]))
            if sum(len(pairs) for pairs, _ in self.waiting) >= BLOCK:
                self.flush()

    def flush(self) -> None:
        """Multiply the pairs that wait, where they are; the sums stay in main memory."""
        if not self.waiting:
            return
        x, y = (torch.cat(side) for side in zip(*self.waiting, strict=True))
        self.waiting = []
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        for start in range(0, x.shape[1], PANEL):
            self.xx[start : start + PANEL, start:] += (x[:, start : start + PANEL].T @ x[:, start:]).cpu()
        self.xy += (x.T @ y).cpu()
        self.yy += float(torch.linalg.vector_norm(y, dtype=torch.float64).square())

    def finish(self) -> None:
        """Multiply what waits, and mirror the panels below the diagonal."""
        self.flush()
        self.xx = self.xx.triu() + self.xx.triu(1).T

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
        self.fitted.finish()
        self.held_out.finish()
        identity = torch.eye(self.size, dtype=torch.float64)
        judge = self.held_out if self.held_out.count else self.fitted
        best, chosen, smallest = identity, float("inf"), judge.error(identity)
        scale, previous = float(self.fitted.xx.diagonal().mean()), float("inf")
        for ridge in RIDGES if self.fitted.count else ():
            gram = self.fitted.xx + ridge * scale * identity
            matrix = identity + torch.cholesky_solve(self.fitted.xy - self.fitted.xx, torch.linalg.cholesky(gram))
            error = judge.error(matrix)
            if error < smallest:
                best, chosen, smallest = matrix, ridge, error
            if error > 1.001 * previous:
                break
            previous = error
        return Fit(
            best.float(),
            self.fitted.count,
            self.held_out.count,
            self.fitted.error(best),
            self.held_out.error(best),
            self.held_out.error(identity),
            chosen,
        )
