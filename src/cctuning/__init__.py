"""CC-Tuning: fine-tune a language model so that what it knows in one language also works in others.

Packages import in one direction: `connection` (the method, torch alone) < `model` (in a transformers model), `data`
< `training` (on TRL) < `evaluation`, `report`, `serving` < `cli`, `demo`. The names below are the public API.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cctuning.connection import ConnectionConfig as ConnectionConfig
    from cctuning.data import PairedCollator as PairedCollator
    from cctuning.data import Source as Source
    from cctuning.data import load_rows as load_rows
    from cctuning.errors import UserError as UserError
    from cctuning.model.connected import ConnectedModel as ConnectedModel
    from cctuning.model.objective import ConnectedOutput as ConnectedOutput
    from cctuning.training import CCConfig as CCConfig
    from cctuning.training import CCTrainer as CCTrainer

__version__ = version("cc-tuning")

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
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `cctuning --help` need not wait for torch and TRL."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cctuning' has no attribute {name!r}")
