"""Parse the options of a verb: fields of dataclasses, from recipes (YAML) and from flags, which override them.

The parser is TRL's `TrlParser`. Errors are `UserError`s of one line, with the nearest name for an unknown key or flag.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any, NoReturn, get_origin, get_type_hints

from cctuning.cli.recipes import HELP, find, read_recipe, recipes
from cctuning.errors import UserError, nearest
from cctuning.settings import alternatives

MAPPINGS = ("data", "eval_data", "parallel")  # text on the command line; in a recipe also mappings
CHAT = {"auto": None, "yes": True, "no": False}
Group = tuple[str, str, Collection[str]]  # of options in --help: name, heading, names of its options


class _ShowDefaults(argparse.HelpFormatter):
    """Adds the default to each help text that does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = any(action.default is none for none in (None, False, argparse.SUPPRESS)) or action.default == []
        shown = action.option_strings and not silent and "default" not in text.lower()
        return f"{text} (default: %(default)s)" if shown else text


class Plain(argparse.ArgumentParser):
    """An `ArgumentParser` for verbs with few options: its errors are `UserError`s, its help shows defaults."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, formatter_class=_ShowDefaults)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of each verb that runs a model: how prompts are rendered, and how the model is loaded."""
    parser.add_argument(
        "--chat",
        nargs="?",
        choices=tuple(CHAT),
        const="yes",
        default="auto",
        help="render prompts with the chat template; auto: as in training, otherwise if there is a template",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        type=_mapping,
        metavar="JSON",
        help="arguments of the chat template, such as '{\"enable_thinking\": true}'; default: those of training",
    )
    parser.add_argument("--dtype", default="auto", help="of the weights; auto: as saved")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")


def chosen(args: argparse.Namespace, names: str) -> dict[str, Any]:
    """The values of the options `names` (separated by spaces), as keyword arguments; `chat` as a truth value."""
    values = {name: getattr(args, name) for name in names.split()}
    return values | ({"chat": CHAT[values["chat"]]} if "chat" in values else {})


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r} ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping, got {text!r}")
    return found


def parse(
    prog: str, description: str, kinds: Sequence[type], argv: list[str], groups: Sequence[Group] = ()
) -> tuple[Any, ...]:
    """Instances of the dataclasses `kinds`, from the recipes of `--config` and from flags.

    Later recipes override earlier ones, and flags override recipes.

    Args:
        groups: of the options, for `--help GROUP`; empty: the help of argparse.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", default=[])
    if groups:
        first.add_argument("-h", "--help", nargs="?", const="", dest="group")
    try:
        early, argv = first.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UserError("--config: expected a file, or a name from `cctuning recipes`.") from None
    which = getattr(early, "group", None)
    if which is not None:
        names = [name for name, _, _ in groups]
        if which not in ("", "all", *names):
            raise UserError(f"--help {which}: no such group;{nearest(which, names)} groups are {', '.join(names)}.")
        print(_help(f"usage: {prog} --config FILE|NAME [--option value …]", description, kinds, groups, which))
        raise SystemExit(0)
    from trl import TrlParser

    types: list[Any] = list(kinds)
    parser = TrlParser(types, prog=prog, description=description, allow_abbrev=False)
    setattr(parser, "error", _fail)  # noqa: B010 (a method)
    parser.add_argument(
        "--config",
        help="Recipe: a YAML file with options as keys, or a name from `cctuning recipes`. Of several, later ones "
        "override earlier ones.",
    )
    known = {option.name: option for kind in kinds for option in fields(kind) if option.init}
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items() if name in known}
    recipe: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for path in early.config:
        layer = read_recipe(find(path, recipes(), "--config"), known, hints, MAPPINGS)
        env |= layer.pop("env", {})
        recipe |= layer
    given = {flag[2:].split("=")[0].replace("-", "_") for flag in argv if flag.startswith("--")}
    for name in given:
        if name not in known and name.removeprefix("no_") not in known and name != "help":
            raise UserError(f"unknown option --{name}.{nearest(name, known, HELP)}")
    # Lists of mappings have no form as a flag; a flag of the same name replaces them.
    structures = {key: value for key, value in recipe.items() if _is_structure(value)}
    parser.set_defaults_with_config(**{key: value for key, value in recipe.items() if key not in structures})
    os.environ.update({key: str(value) for key, value in env.items()})
    parsed, rest = parser.parse_known_args(argv)
    if rest:
        advice = "give a recipe with --config" if rest[0].endswith((".yaml", ".yml")) else "see --help"
        raise UserError(f"unexpected argument {rest[0]!r}; {advice}.")
    values = vars(parsed) | {key: value for key, value in structures.items() if key not in given}
    try:
        return tuple(
            kind(**{option.name: values[option.name] for option in fields(kind) if option.init}) for kind in kinds
        )
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or 'options'}: {error.strerror}; name another place.") from error
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"options: {error}") from error


def _fail(message: str) -> NoReturn:
    raise UserError(f"{message} (see --help)")


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


# -- help -------------------------------------------------------------------------------------------------------------


def _help(usage: str, description: str, kinds: Sequence[type], groups: Sequence[Group], which: str) -> str:
    """The help text. An option is in the first group that has it; `which` is the name of a group, `all`, or empty for
    all but the last group."""
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    left = {option.name: option for kind in kinds for option in fields(kind) if option.init}
    width = min(shutil.get_terminal_size().columns, 110)
    lines = [usage, "", *textwrap.wrap(description, width), ""]
    for name, heading, members in groups:
        own = [left.pop(option) for option in list(left) if option in members]
        if which in (name, "all") or (not which and name != groups[-1][0]):
            lines += [f"{heading}  (--help {name})", ""]
            lines += [line for option in own for line in _option(option, hints[option.name], width)]
            lines.append("")
    names = ", ".join(name for name, _, _ in groups)
    lines.append(f"--help GROUP shows one group ({names}), --help all every option.")
    return "\n".join(lines)


def _option(option: Field[Any], hint: Any, width: int) -> list[str]:
    default = option.default_factory() if option.default_factory is not MISSING else option.default
    default = default.value if isinstance(default, Enum) else default
    takes = "|".join(map(str, option.metadata["choices"])) if "choices" in option.metadata else _kind(hint)
    shown = "unset" if default in (None, "", []) else str(default).lower() if isinstance(default, bool) else default
    help = option.metadata.get("help", "")
    body = " ".join((help if "unset:" in help.lower() and shown == "unset" else f"{help} Default: {shown}.").split())
    return [
        f"  --{option.name} {takes}",
        *textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _kind(hint: Any) -> str:
    named: Mapping[Any, str] = {bool: "true|false", int: "N", float: "X", str: "TEXT", dict: "JSON", list: "TEXT …"}
    found = [named.get(get_origin(part) or part, "TEXT") for part in alternatives(hint) if part is not types.NoneType]
    return found[0] if found else "TEXT"
