"""Streaming least squares, in the memory of a few d x d matrices for any number of pairs.

Only products are kept, summed in fp64. A tenth of the pairs is held out in products of their own, which give the
held-out error of any matrix without the pairs. The ridge pulls towards the identity, and its strength is the one with
the smallest held-out error.

For speed (bench/fitting.py), pairs are multiplied in fp32 in blocks of `BLOCK`, only on and above the diagonal of the
symmetric product, and ridges are tried from the middle in the direction in which the error falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # relative to the mean eigenvalue of the Gram matrix
START = 2  # which of them is tried first
BLOCK = 4096  # pairs multiplied at a time
PANEL = 192  # rows of the symmetric product made at a time


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
    """X'X, X'Z, tr(Z'Z), tr(Y'Y) and the number of pairs, where Z = Y - X; complete after `finish`."""

    def __init__(self, size: int) -> None:
        self.xx = torch.zeros(size, size, dtype=torch.float64)
        self.xz = torch.zeros(size, size, dtype=torch.float64)
        self.zz, self.yy, self.count = 0.0, 0.0, 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        self.count += x.shape[0]
        for start in range(0, x.shape[0], BLOCK):
            self.waiting.append((x[start : start + BLOCK], y[start : start + BLOCK]))
            if sum(len(pairs) for pairs, _ in self.waiting) >= BLOCK:
                self.flush()

    def flush(self) -> None:
        """Multiply the waiting pairs on their device; the sums stay in main memory."""
        if not self.waiting:
            return
        x, y = (torch.cat(side) for side in zip(*self.waiting, strict=True))
        self.waiting = []
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        z = y - x
        for start in range(0, x.shape[1], PANEL):
            self.xx[start : start + PANEL, start:] += (x[:, start : start + PANEL].T @ x[:, start:]).cpu()
        self.xz += (x.T @ z).cpu()
        self.zz += float(torch.linalg.vector_norm(z, dtype=torch.float64).square())
        self.yy += float(torch.linalg.vector_norm(y, dtype=torch.float64).square())

    def finish(self) -> None:
        """Multiply the waiting pairs, and mirror the panels below the diagonal."""
        self.flush()
        self.xx = self.xx.triu() + self.xx.triu(1).T

    def error(self, change: Tensor, applied: Tensor | None = None) -> float:
        """`||X D - Z||^2 / ||Y||^2` of the change D; `applied`: X'X D, if known."""
        if not self.count:
            return float("nan")
        applied = self.xx @ change if applied is None else applied
        return self._relative(float((change * (applied - 2 * self.xz)).sum()) + self.zz)

    def error_identity(self) -> float:
        """The same of D = 0."""
        return self._relative(self.zz) if self.count else float("nan")

    def _relative(self, missed: float) -> float:
        return max(0.0, missed) / max(self.yy, 1e-30)


@dataclass
class _Tried:
    """A ridge, its error and its solution."""

    ridge: float
    error: float
    change: Tensor


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
        self.fitted.finish()
        self.held_out.finish()
        judge = self.held_out if self.held_out.count else self.fitted
        best = _Tried(float("inf"), judge.error_identity(), torch.zeros_like(self.fitted.xx))
        if self.fitted.count:
            best = min(self._walk(judge), best, key=lambda tried: tried.error)
        # X'X D = X'Z - r D where D solves the equation, so the error on the fitted pairs needs no product.
        settled = self.fitted.xz - best.ridge * self._scale() * best.change if best.ridge < float("inf") else None
        return Fit(
            (torch.eye(self.size, dtype=torch.float64) + best.change).float(),
            self.fitted.count,
            self.held_out.count,
            self.fitted.error(best.change, settled),
            best.error if self.held_out.count else float("nan"),
            self.held_out.error_identity(),
            best.ridge,
        )

    def _walk(self, judge: _Products) -> _Tried:
        """Try stronger ridges from the middle one while the error falls; if none is better, weaker ones."""
        first = best = self._try(RIDGES[START], judge)
        for way in (RIDGES[START + 1 :], RIDGES[START - 1 :: -1]):
            for ridge in way:
                tried = self._try(ridge, judge)
                if not tried.error < best.error:
                    break
                best = tried
            if best is not first:
                break
        return best

    def _try(self, ridge: float, judge: _Products) -> _Tried:
        gram = self.fitted.xx.clone()
        gram.diagonal().add_(ridge * self._scale())
        change = torch.cholesky_solve(self.fitted.xz, torch.linalg.cholesky(gram))
        return _Tried(ridge, judge.error(change), change)

    def _scale(self) -> float:
        return float(self.fitted.xx.diagonal().mean())
