"""Check that the paths in a command exist before torch and TRL, which take seconds to import, are loaded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from cctuning.data.readers import check_place
from cctuning.errors import UserError, nearest


def check_paths(argv: list[str]) -> None:
    """Raise `UserError` if a path of the model or the rows, in flags or recipes, does not exist.

    What else is wrong with flags and recipes is left to the parser of the options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--model")
    parser.add_argument("--data", nargs="*")
    parser.add_argument("--eval_data", nargs="*")
    try:
        flags, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        return
    given: dict[str, Any] = {}
    for path in flags.config:
        try:
            recipe = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        given |= recipe if isinstance(recipe, dict) else {}
    given |= {name: value for name, value in vars(flags).items() if value is not None}
    if isinstance(given.get("model"), str):
        check_model(given["model"])
    for entries in (given.get("data"), given.get("eval_data")):
        for entry in entries if isinstance(entries, list) else [entries]:
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
