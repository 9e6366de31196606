"""The method on torch alone, without transformers: its equations, its parts, and the layers that apply them."""

from cctuning.connection.config import ConnectionConfig
from cctuning.connection.decisions import Decision, register_decision
from cctuning.connection.references import Alignment, register_alignment
from cctuning.connection.transforms import Transform, register_transform

__all__ = [
    "Alignment",
    "ConnectionConfig",
    "Decision",
    "Transform",
    "register_alignment",
    "register_decision",
    "register_transform",
]
