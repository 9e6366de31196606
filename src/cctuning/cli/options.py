"""One dataclass = option = YAML key: options from a recipe and from flags, flags last.

The parser is TRL's (`TrlParser`); what is added is that a key or flag nobody knows names the nearest one that exists,
and that every mistake is one line.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from cctuning.errors import UserError


class Parser(TrlParser):
    """A `TrlParser` whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


class Plain(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s, for verbs with a handful of flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(prog: str, description: str, kinds: Sequence[type], argv: list[str]) -> tuple[Any, ...]:
    """Instances of the dataclasses `kinds` from `argv`, where `--config FILE` names a recipe.

    Raises:
        UserError: unreadable recipe, unknown key or flag, or a value its option cannot take.
    """
    parser = Parser(list(kinds), prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file whose keys are the options below.")
    recipe, argv = _recipe(argv)
    known = {option.name: option for kind in kinds for option in fields(kind) if option.init}
    env = recipe.pop("env", {})
    if not isinstance(env, dict):
        raise UserError(f"recipe: env: expected a mapping of variables, got {env!r}.")
    for key in recipe:
        if key not in known:
            raise UserError(f"recipe: unknown key {key!r}.{_nearest(str(key), known)}")
    for flag in argv:
        name = flag.removeprefix("--").split("=")[0].replace("-", "_")
        if flag.startswith("--") and name not in known and name.removeprefix("no_") not in known and name != "help":
            raise UserError(f"unknown option --{name}.{_nearest(name, known)}")
    unlisted = [key for key, value in recipe.items() if _is_structure(value)]
    parser.set_defaults_with_config(**{key: value for key, value in recipe.items() if key not in unlisted})
    import os

    os.environ.update({key: str(value) for key, value in env.items()})
    namespace = vars(parser.parse_args(argv))
    given = {flag.removeprefix("--").split("=")[0].replace("-", "_") for flag in argv if flag.startswith("--")}
    for key in unlisted:  # lists of mappings have no flag form; a flag of the same name replaces them
        if key not in given:
            namespace[key] = recipe[key]
    built = []
    for kind in kinds:
        try:
            built.append(kind(**{option.name: namespace[option.name] for option in fields(kind) if option.init}))
        except UserError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise UserError(f"options: {error}") from error
    return tuple(built)


def _recipe(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The mapping in the file that `--config` names, and the other arguments."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            path = next(arguments, None)
            if path is None:
                raise UserError("--config: expected a file.")
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    if path is None:
        return {}, rest
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read: {error}.") from error
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"--config {path}: expected a mapping of options, got {type(recipe).__name__}.")
    return recipe, rest


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else " See --help for the options."
