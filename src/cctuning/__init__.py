"""CC-Tuning: fine-tune a language model so that what it knows in one language also works in others.

Packages import in one direction: `connection` (the method, torch alone) < `model` (in a transformers model), `data`
< `training` (on TRL) < `evaluation`, `report`, `serving` < `cli`, `demo`. The names below are the public API.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cctuning.connection import ConnectionConfig
    from cctuning.data import PairedCollator, Source, load_rows
    from cctuning.errors import UserError
    from cctuning.model.connected import ConnectedModel
    from cctuning.model.objective import ConnectedOutput
    from cctuning.training import CCConfig, CCTrainer

__version__ = version("cc-tuning")
__all__ = [
    "CCConfig",
    "CCTrainer",
    "ConnectedModel",
    "ConnectedOutput",
    "ConnectionConfig",
    "PairedCollator",
    "Source",
    "UserError",
    "load_rows",
]

_HOMES = {
    "CCConfig": "cctuning.training",
    "CCTrainer": "cctuning.training",
    "ConnectedModel": "cctuning.model.connected",
    "ConnectedOutput": "cctuning.model.objective",
    "ConnectionConfig": "cctuning.connection",
    "PairedCollator": "cctuning.data",
    "Source": "cctuning.data",
    "UserError": "cctuning.errors",
    "load_rows": "cctuning.data",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `cctuning --help` need not wait for torch and TRL."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cctuning' has no attribute {name!r}")
