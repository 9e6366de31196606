"""The method on torch alone, without transformers: its equations, its parts, and the layers that apply them."""

from cctuning.connection.adaptive import AdaptiveConnection
from cctuning.connection.align import LayerAlignment, Spans, Statistics, StopForward, offered, spans
from cctuning.connection.config import ConnectionConfig
from cctuning.connection.decisions import Decision, register_decision
from cctuning.connection.gated import LayerConnection
from cctuning.connection.least_squares import Fit, StreamingLeastSquares
from cctuning.connection.plan import (
    Above,
    Plan,
    Wire,
    answering,
    predicting,
    prompt_ends,
    restore,
    scope_mask,
    total,
)
from cctuning.connection.references import Alignment, Reference, last_real, register_alignment
from cctuning.connection.transforms import Transform, register_transform

__all__ = [
    "Above",
    "AdaptiveConnection",
    "Alignment",
    "ConnectionConfig",
    "Decision",
    "Fit",
    "LayerAlignment",
    "LayerConnection",
    "Plan",
    "Reference",
    "Spans",
    "Statistics",
    "StopForward",
    "StreamingLeastSquares",
    "Transform",
    "Wire",
    "answering",
    "last_real",
    "offered",
    "predicting",
    "prompt_ends",
    "register_alignment",
    "register_decision",
    "register_transform",
    "restore",
    "scope_mask",
    "spans",
    "total",
]
