"""Floor 1: the method, on torch alone. What connects, how much, and what imitates it; no transformers here."""

from cctuning.connection.alignment import Reference, last_real
from cctuning.connection.config import ConnectionConfig
from cctuning.connection.fusion import LayerConnection
from cctuning.connection.plan import Plan, Wire, predicting, prompt_ends, restore, scope_mask, total
from cctuning.connection.transform import DenseTransform, LowRankTransform, NonlinearTransform, delta_matrix

__all__ = [
    "ConnectionConfig",
    "DenseTransform",
    "LayerConnection",
    "LowRankTransform",
    "NonlinearTransform",
    "Plan",
    "Reference",
    "Wire",
    "delta_matrix",
    "last_real",
    "predicting",
    "prompt_ends",
    "restore",
    "scope_mask",
    "total",
]
