"""A recipe: a YAML file of options, checked key by key, so that a mistake is named with its line."""

from __future__ import annotations

import enum
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from cctuning.errors import UserError, nearest

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}
HELP = " See --help for the options."  # where nothing is near what was written


def read_recipe(
    path: str, hints: Mapping[str, Any], choices: Mapping[str, Collection[str]], mappings: Collection[str]
) -> dict[str, Any]:
    """The options in the file `path`.

    Args:
        path: of the YAML file.
        hints: option name to its type.
        choices: option name to its values, where they are a few.
        mappings: options that also take mappings, whatever their type says.

    Raises:
        UserError: it cannot be read, or a key is unknown, twice there, or has a value of another type.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 ({error}); re-encode it.") from error
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}; name a YAML file.") from error
    try:
        node, recipe = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--config {path}: not valid YAML: {error}; mend it there.") from error
    if not isinstance(recipe, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"--config {path}: expected a mapping of options, got {type(recipe).__name__}.")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UserError(f"{path}:{line}: {key.value} is there twice (first in line {lines[key.value]}); keep one.")
        lines[key.value] = line
    for name, value in list(recipe.items()):
        where = f"{path}:{lines.get(str(name), 1)}"
        if name == "env":
            if not isinstance(value, dict):
                raise UserError(f"{where}: env: expected a mapping of variables, got {value!r}.")
        elif name not in hints:
            raise UserError(f"{where}: unknown key {name!r}.{nearest(str(name), hints, HELP)}")
        elif not (name in mappings and isinstance(value, (str, list, dict))) and not _fits(value, hints[name]):
            advice = " Put it in quotes." if isinstance(value, bool) else ""  # YAML reads a bare `no` as false
            raise UserError(f"{where}: {name}: expected {_words(hints[name])}, got {value!r}.{advice}")
        elif isinstance(value, str) and str not in _parts(hints[name]) and _parts(hints[name]) & {list[str]}:
            recipe[name] = [value]  # one text where a list of texts may stand
        elif value is not None and name in choices and value not in choices[name]:
            hint = nearest(str(value), choices[name])
            raise UserError(f"{where}: {name}: {value!r} is not one of {', '.join(choices[name])}.{hint}")
    return recipe


def _fits(value: Any, hint: Any) -> bool:
    """Whether the option's parser can take `value`; text passes for a number, the parser converts it or refuses."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str)
    if hint == list[str] and isinstance(value, str):
        return True
    if origin is list or hint is list:
        return isinstance(value, list) and all(_fits(item, part) for part in get_args(hint)[:1] for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint is type(None):
        return value is None
    if hint in (bool, str):
        return isinstance(value, (hint, str))
    if hint is int:
        return isinstance(value, (int, str)) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float, str)) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str)
    return True


def _parts(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}


def _words(hint: Any) -> str:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    named = [WORDS.get(get_origin(part) or part, "text") for part in parts if part is not type(None)]
    return " or ".join(dict.fromkeys(named)) + (" (or null)" if type(None) in parts else "")
