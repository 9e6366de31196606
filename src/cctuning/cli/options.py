"""One dataclass = option = YAML key: options from a recipe and from flags, flags last.

The parser is TRL's (`TrlParser`); what is added is that a key or flag nobody knows names the nearest one that exists,
and that every mistake is one line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn, get_type_hints

from trl import TrlParser

from cctuning.cli import help
from cctuning.cli.packaged import find, recipes
from cctuning.cli.recipe import HELP, read_recipe
from cctuning.errors import UserError, nearest

MAPPINGS = (
    "data",
    "eval_data",
    "parallel",
)  # options that are text on the command line, and in a recipe also mappings


class Parser(TrlParser):
    """A `TrlParser` whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


class Plain(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s, for verbs with a handful of flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


CHAT = {"auto": None, "yes": True, "no": False}


def add_chat(parser: argparse.ArgumentParser) -> None:
    """The flags by which prompts are rendered, alike for every verb that asks a model."""
    parser.add_argument(
        "--chat",
        nargs="?",
        choices=tuple(CHAT),
        const="yes",
        default="auto",
        help="render prompts with the chat template. auto: as in training; where that is not known, if there is one",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        type=_mapping,
        metavar="JSON",
        help="arguments of the chat template, as '{\"enable_thinking\": true}', in place of those of training",
    )


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r} ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping, got {text!r}")
    return found


def parse(
    prog: str, description: str, kinds: Sequence[type], argv: list[str], groups: Sequence[help.Group] = ()
) -> tuple[Any, ...]:
    """Instances of the dataclasses `kinds` from `argv`, where `--config FILE` names a recipe; of several, a later one
    overrides the keys it shares with an earlier one, and flags override all.

    Args:
        groups: of the options, for `--help GROUP`; empty: argparse's own help.

    Raises:
        UserError: unreadable recipe, unknown key or flag, or a value its option cannot take.
    """
    which = help.wanted(argv) if groups else None
    if which is not None:
        names = [name for name, _, _ in groups]
        if which not in ("", "all", *names):
            raise UserError(
                f"--help {which}: no such group;{nearest(which, names, '')} groups are {', '.join(names)}."
            )
        usage = f"usage: {prog} --config FILE|NAME [--option value …]"
        print(help.text(usage, description, kinds, groups, which))
        raise SystemExit(0)
    types: list[Any] = list(kinds)
    parser = Parser(types, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        help="Recipe: a YAML file whose keys are the options below, or a name of `cctuning recipes`. May be given "
        "more than once; later ones override.",
    )
    known = {option.name: option for kind in kinds for option in fields(kind) if option.init}
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items() if name in known}
    paths, argv = _configs(argv)
    choices = {name: option.metadata["choices"] for name, option in known.items() if "choices" in option.metadata}
    recipe: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for path in paths:
        layer = read_recipe(str(find(path, recipes(), "--config")), hints, choices, MAPPINGS)
        env |= layer.pop("env", {})
        recipe |= layer
    for flag in argv:
        name = _name(flag)
        if flag.startswith("--") and name not in known and name.removeprefix("no_") not in known and name != "help":
            raise UserError(f"unknown option --{name}.{nearest(name, known, HELP)}")
    unlisted = [key for key, value in recipe.items() if _is_structure(value)]
    parser.set_defaults_with_config(**{key: value for key, value in recipe.items() if key not in unlisted})
    os.environ.update({key: str(value) for key, value in env.items()})
    parsed, rest = parser.parse_known_args(argv)
    if rest:
        advice = "a recipe is named with --config" if rest[0].endswith((".yaml", ".yml")) else "see --help"
        raise UserError(f"unexpected argument {rest[0]!r}; {advice}.")
    namespace = vars(parsed)
    given = {_name(flag) for flag in argv if flag.startswith("--")}
    for key in unlisted:  # lists of mappings have no flag form; a flag of the same name replaces them
        if key not in given:
            namespace[key] = recipe[key]
    built = []
    for kind in kinds:
        try:
            built.append(kind(**{option.name: namespace[option.name] for option in fields(kind) if option.init}))
        except UserError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise UserError(f"options: {error}") from error
    return tuple(built)


def _name(flag: str) -> str:
    return flag.removeprefix("--").split("=")[0].replace("-", "_")


def _configs(argv: list[str]) -> tuple[list[str], list[str]]:
    """The files that `--config` names, in order, and the other arguments."""
    rest: list[str] = []
    paths: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            path = next(arguments, None)
            if path is None:
                raise UserError("--config: expected a file.")
            paths.append(path)
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return paths, rest


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
