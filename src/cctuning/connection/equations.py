"""The equations of the method, in the order of the paper and of docs/method: plain functions on plain tensors.

Notation: h is the activation of a row, e that of its reference (the parallel of its prompt); both have d dimensions,
vectors are rows (h W, not W h), and sg is stop-gradient. `align` uses the first part and the objective, `gated` the
second part, the relative and standardized errors, and the objective. The layers call these functions, so each
equation stands here and nowhere else; where a layer has a faster form, tests/connection/test_equations.py compares
the two by value and by gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-12  # keeps a row whose activations are all zero from dividing by zero


# -- align: pooled prompts, compared in units of the references' spread ----------------------------------------------


def pool(hidden: Tensor, weights: Tensor) -> Tensor:
    """h_x = sum_t w_t h_t: (B, d) in fp32, of `hidden` (B, T, d) and `weights` (B, T) that sum to 1.

    In fp32 throughout: a spread that is a hundredth of the mean would be lost in bf16.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.bmm(weights[:, None], hidden.float()).squeeze(1)


def standardize(h: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """z(h) = (h - mean) / spread by dimension; mean and spread (d,) are those of all references."""
    return (h.float() - mean) / spread


def contrastive_error(z: Tensor, target: Tensor, others: Tensor, same: Tensor, temperature: float) -> Tensor:
    """-log [ exp(cos(z, z_e) / T) / sum over references r of exp(cos(z, z_r) / T) ]: (B,), InfoNCE.

    Args:
        z, target: (B, d) standardized rows and their references. others: (K, d) unit vectors of references to tell
            them from. same: (B, K) bool, where one of those is the row's own.

    Source: van den Oord et al. 2018, arXiv 1807.03748.
    """
    with torch.autocast(z.device.type, enabled=False):
        unit = normalize(z, dim=-1)
        own = (unit * normalize(target, dim=-1)).sum(dim=-1, keepdim=True) / temperature
        rest = (unit @ others.T / temperature).masked_fill(same, -torch.inf)
    return torch.cat([own, rest], dim=1).logsumexp(dim=1) - own.squeeze(1)


def standardized_error(z: Tensor, target: Tensor, rows: Tensor | None = None, count: int = 0) -> Tensor:
    """mean over a row's positions and dimensions of (z - z_e)^2: 1 is no better than the mean reference.

    Args:
        z, target: (N, d) in units of the spread.
        rows: (N,) the row of each position, of `count`; None: each position is a row of its own.

    Returns:
        (count,) or (N,).
    """
    each = (z - target).square().mean(dim=-1)
    return each if rows is None else ratio(each, torch.ones_like(each), rows, count)


def relative_error(h: Tensor, target: Tensor, rows: Tensor | None = None, count: int = 0) -> Tensor:
    """sum_t ||h_t - e_t||^2 / sum_t ||e_t||^2 over a row's positions t; arguments as in `standardized_error`."""
    missed, size = (h - target).square().sum(dim=-1), target.square().sum(dim=-1)
    return missed / (size + TINY) if rows is None else ratio(missed, size, rows, count)


# -- gated: decide, fuse, transform (arXiv 2506.00875, section 3, per layer and per dimension) ---------------------


def decide(h: Tensor, e: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """a = sigmoid(D(e - h)) in [0, 1]^d: the share of the reference in each dimension; D = `score` is affine."""
    return torch.sigmoid(score(e - h))


def fuse(h: Tensor, e: Tensor, a: Tensor) -> Tensor:
    """f = a e + (1 - a) h."""
    return h + a * (e - h)


def transform(h: Tensor, delta: Callable[[Tensor], Tensor]) -> Tensor:
    """h W = h + delta(h), with delta = 0 at the start: the untrained model is the base model bit for bit."""
    return h + delta(h)


# The error of a row is relative_error(h W, sg(f)) or standardized_error of the two in units of the spread, at the
# connected positions. Elsewhere W is taught to be the identity: relative_error(h W, sg(h)).


# -- the objective ---------------------------------------------------------------------------------------------------


def objective(errors: Tensor, row_weight: Tensor, scale: float) -> Tensor:
    """scale * sum over rows of w_row error_row, one layer's term of the loss.

    `row_weight` (B,) is 1 / rows of the optimiser step (0 for a row without a reference) and `scale` is align_weight /
    layers, so the loss is LM loss + align_weight * mean over rows and layers of the error.
    """
    return scale * (row_weight * errors).sum()


def fused_probability(step: int, steps: int, start: float, end: float) -> float:
    """`paths: sampled`: p(step) = start + (end - start) step / (steps - 1), the share of rows on the fused path.

    It stays at its first value before step 0 and at its last after the last step.
    """
    return start + (end - start) * min(1.0, max(0, step) / max(1, steps - 1))


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(sg(p_fused) || p_student) at each position: (N,), of logits (N, V)."""
    log_p, log_q = teacher.detach().float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


# -- sums over the positions of a row ------------------------------------------------------------------------------


def row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sums of `values` (N,) over the positions of each of `count` rows: (count,)."""
    return values.new_zeros(count).index_add(0, rows, values)


def ratio(missed: Tensor, size: Tensor, rows: Tensor, count: int) -> Tensor:
    """sum_t missed_t / sum_t size_t over the positions of each of `count` rows: (count,), 0 where a row has none."""
    return row_sums(missed, rows, count) / (row_sums(size, rows, count) + TINY)
