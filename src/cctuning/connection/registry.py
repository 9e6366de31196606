"""Options whose values are classes, found by name. Users register classes of their own (see examples/)."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from cctuning.errors import UserError

PLUGINS = "CC_TUNING_PLUGINS"  # environment variable: modules to import, separated by commas
C = TypeVar("C", bound=type)


class Registry(dict[str, Any]):
    """Name -> class, in the order of registration; None where the name stands for no class at all."""

    def __init__(self, option: str, base: type) -> None:
        super().__init__()
        self.option, self.base = option, base
        self.hint = f" A class of your own must be imported first: name its module in {PLUGINS}."

    def __contains__(self, name: object) -> bool:
        """Whether the name is known; modules of `CC_TUNING_PLUGINS` are imported before one is unknown."""
        if not super().__contains__(name):
            load_plugins()
        return super().__contains__(name)

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: `name` becomes a value of the option.

        Raises:
            UserError: the name is taken by another class, or the class does not derive from the option's base class.
        """

        def add(cls: C) -> C:
            taken = self.get(name, cls)
            if f"{taken.__module__}.{taken.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
                raise UserError(f"{self.option}: {name!r} is registered already, by {taken.__module__}; take another.")
            if not issubclass(cls, self.base):
                raise UserError(f"{self.option}: {cls.__name__} must derive from {self.base.__name__}.")
            self[name] = cls
            return cls

        return add


def load_plugins() -> None:
    """Import the modules that `CC_TUNING_PLUGINS` names, which register classes (and import this package)."""
    for name in filter(None, (part.strip() for part in os.environ.get(PLUGINS, "").split(","))):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"{PLUGINS}={name}: cannot be imported ({error}); is it on PYTHONPATH?") from error
