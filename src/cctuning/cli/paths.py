"""Check that the paths in a command exist before torch and TRL, which take seconds to import, are loaded.

Recipes are read here for a few keys only; the parser of the options reads them in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cctuning.data.readers import check_place
from cctuning.errors import UserError, nearest


def check_paths(argv: list[str]) -> None:
    """Raise `UserError` if a path of the model or the rows does not exist."""
    model: Any = None
    data: list[Any] = []
    for name, values in _given(argv):
        if name == "config":
            recipe = _recipe(values[0]) if values else {}
            model = recipe.get("model", model)
            for key in ("data", "eval_data"):
                data += recipe[key] if isinstance(recipe.get(key), list) else [recipe[key]] if recipe.get(key) else []
        elif name == "model":
            model = values[0] if values else model
    flags = [value for name, values in _given(argv) if name in ("data", "eval_data") for value in values]
    if isinstance(model, str):
        check_model(model)
    for entry in flags or data:  # flags replace what recipes name
        place = entry.get("path") if isinstance(entry, dict) else entry
        if isinstance(place, str) and not (isinstance(entry, dict) and entry.get("name")):
            check_place(place)


def check_model(name: str) -> None:
    """Raise `UserError` if a model's name is a path that is not a model's directory."""
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        near = nearest(str(folder), [str(one) for one in folder.parent.iterdir()] if folder.parent.is_dir() else [])
        raise UserError(
            f"model: {name}: no such directory.{near} Give a model directory, or a hub name like org/name."
        )
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise UserError(f"model: {name}: no config.json in it; give the directory of a model, or a hub name.")


def _given(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with its values."""
    name, values = "", list[str]()
    for argument in argv:
        if argument.startswith("--"):
            yield name, values
            name, equals, value = argument.removeprefix("--").partition("=")
            values = [value] if equals else []
        else:
            values.append(argument)
    yield name, values


def _recipe(path: str) -> dict[str, Any]:
    """A recipe's keys; none if it cannot be read, which the parser of the options reports."""
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
