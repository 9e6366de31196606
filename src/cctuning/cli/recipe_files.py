"""Find and read recipes: YAML files of options, among them those in the package.

Those of the package are in `cctuning/recipes` (in a clone a link to `recipes/`), so that `--config cc` and
`--accelerate_config ddp` work wherever it is installed.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

import cctuning
from cctuning.errors import UserError, nearest
from cctuning.settings import KINDS

FOLDER = Path(cctuning.__file__).parent / "recipes"
HELP = " See --help for the options."  # where no known name is similar


def recipes() -> dict[str, Path]:
    """Recipes of `cctuning train` in the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def accelerate_configs() -> dict[str, Path]:
    """Accelerate configurations in the package, by name."""
    return {path.stem: path for path in sorted((FOLDER / "accelerate").glob("*.yaml"))}


def find(given: str, known: dict[str, Path], flag: str) -> Path:
    """The file `given`, or the one in the package with that name; a file has precedence.

    Raises:
        UserError: there is neither.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if given in known:
        return known[given]
    if path.is_dir():
        raise UserError(f"{flag} {given}: is a directory; give a YAML file, or one of {', '.join(known)}.")
    hint = nearest(given, known, f" The package has {', '.join(known)}.")
    raise UserError(f"{flag} {given}: no such file, and not the name of one in the package.{hint}")


def summary(path: Path) -> str:
    """The first sentence of the comment at the beginning of a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".") + "."


def read_recipe(
    path: str, hints: Mapping[str, Any], choices: Mapping[str, Collection[str]], mappings: Collection[str]
) -> dict[str, Any]:
    """The options in the YAML file `path`.

    Args:
        hints: types of the options, by name.
        choices: values of the options that take one of a few.
        mappings: options that also take mappings, whatever their type says.

    Raises:
        UserError: the file cannot be read, or a key is unknown, repeated or has a value of the wrong type.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 ({error}); convert it.") from error
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}; give a YAML file.") from error
    try:
        node, recipe = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--config {path}: not valid YAML: {error}; correct it there.") from error
    if not isinstance(recipe, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"--config {path}: expected a mapping of options, got {type(recipe).__name__}.")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UserError(f"{path}:{line}: {key.value}: repeated (first in line {lines[key.value]}); keep one.")
        lines[key.value] = line
    for name, value in list(recipe.items()):
        where = f"{path}:{lines.get(str(name), 1)}"
        if name == "env":
            if not isinstance(value, dict):
                raise UserError(f"{where}: env: expected a mapping of variables, got {value!r}.")
            continue
        if name not in hints:
            raise UserError(f"{where}: unknown key {name!r}.{nearest(str(name), hints, HELP)}")
        parts = _parts(hints[name])
        if not (name in mappings and isinstance(value, (str, list, dict))) and not any(_fits(value, p) for p in parts):
            advice = " Put it in quotes." if isinstance(value, bool) else ""  # YAML reads a bare `no` as false
            raise UserError(f"{where}: {name}: expected {_expected(parts)}, got {value!r}.{advice}")
        if isinstance(value, str) and str not in parts and list[str] in parts:
            recipe[name] = [value]  # one text instead of a list of texts
        elif value is not None and name in choices and value not in choices[name]:
            hint = nearest(str(value), choices[name])
            raise UserError(f"{where}: {name}: {value!r} is not one of {', '.join(choices[name])}.{hint}")
    return recipe


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the parser accepts `value` for a type; it converts text to numbers."""
    origin = get_origin(hint) or hint
    if hint == list[str] and isinstance(value, str):
        return True
    if origin is list:
        items = get_args(hint)[:1]
        return isinstance(value, list) and all(any(_fits(item, p) for p in _parts(i)) for i in items for item in value)
    accepted: dict[Any, Any] = {
        Literal: str,
        dict: dict,
        types.NoneType: types.NoneType,
        bool: (bool, str),
        str: str,
        int: (int, str),
        float: (int, float, str),
    }
    if isinstance(value, bool) and origin in (int, float):
        return False
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str)
    return origin not in accepted or isinstance(value, accepted[origin])


def _expected(parts: tuple[Any, ...]) -> str:
    named = [KINDS.get(get_origin(part) or part, "text") for part in parts if part is not types.NoneType]
    return " or ".join(dict.fromkeys(named)) + (" (or null)" if types.NoneType in parts else "")
