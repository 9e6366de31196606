"""Floor 1: the method, on torch alone. What connects, how much, and what imitates it; no transformers here."""

from cctuning.connection.adaptive import AdaptiveConnection
from cctuning.connection.align import Enough, LayerAlignment
from cctuning.connection.config import ConnectionConfig
from cctuning.connection.gated import LayerConnection
from cctuning.connection.least_squares import Fit, StreamingLeastSquares
from cctuning.connection.plan import Plan, Wire, answering, predicting, prompt_ends, restore, scope_mask, total
from cctuning.connection.pooled import Statistics, offered, spans
from cctuning.connection.references import Reference, last_real, remember
from cctuning.connection.transforms import DenseTransform, LowRankTransform, NonlinearTransform, delta_matrix

__all__ = [
    "AdaptiveConnection",
    "ConnectionConfig",
    "DenseTransform",
    "Enough",
    "Fit",
    "LayerAlignment",
    "LayerConnection",
    "LowRankTransform",
    "NonlinearTransform",
    "Plan",
    "Reference",
    "Statistics",
    "StreamingLeastSquares",
    "Wire",
    "answering",
    "delta_matrix",
    "last_real",
    "offered",
    "predicting",
    "prompt_ends",
    "remember",
    "restore",
    "scope_mask",
    "spans",
    "total",
]
