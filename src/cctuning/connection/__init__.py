"""The method on torch alone, without transformers: its equations, its parts, and the layers that apply them."""

from cctuning.connection.config import ConnectionConfig
from cctuning.connection.parts import (
    Alignment,
    Decision,
    Transform,
    register_alignment,
    register_decision,
    register_transform,
)

__all__ = [
    "Alignment",
    "ConnectionConfig",
    "Decision",
    "Transform",
    "register_alignment",
    "register_decision",
    "register_transform",
]
