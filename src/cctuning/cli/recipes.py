"""`cctuning recipes [NAME]`: list the recipes in the package, or print one. Also finds and reads recipes.

Recipes are YAML files of options. Those of the package are in `cctuning/recipes` (in a clone a link to `recipes/`), so
that `--config cc` and `--accelerate_config ddp` work wherever it is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import yaml

import cctuning
from cctuning.errors import UserError, nearest
from cctuning.settings import alternatives, check_value

FOLDER = Path(cctuning.__file__).parent / "recipes"
HELP = " See --help for the options."  # where no known name is similar


def recipes() -> dict[str, Path]:
    """Map the name of each recipe for `cctuning train` in the package to its file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def accelerate_configs() -> dict[str, Path]:
    """Map the name of each accelerate configuration in the package to its file."""
    return {path.stem: path for path in sorted((FOLDER / "accelerate").glob("*.yaml"))}


def find(given: str, known: dict[str, Path], flag: str) -> Path:
    """The file `given`, or the one in the package with that name; a file has precedence."""
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
    path: Path, options: Mapping[str, Field[Any]], hints: Mapping[str, Any], mappings: Collection[str]
) -> dict[str, Any]:
    """The options in a YAML file.

    Args:
        options: option name -> dataclass field. hints: option name -> type.
        mappings: options that also take mappings, whatever their type says.
    """
    try:
        text = path.read_text(encoding="utf-8")
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
        if name not in options:
            raise UserError(f"{where}: unknown key {name!r}.{nearest(str(name), options, HELP)}")
        parts = alternatives(hints[name])
        if isinstance(value, str) and list[str] in parts and str not in parts:
            recipe[name] = [value]  # one text in place of a list of texts
        elif not (name in mappings and isinstance(value, (list, dict))):
            check_value(options[name], hints[name], value, where, numbers_as_text=True)
    return recipe


def main(argv: list[str]) -> None:
    """List the recipes and accelerate configurations, or print one of them."""
    from cctuning.cli.options import Plain  # imports this module

    description = "List the recipes and accelerate configurations in the package, or print one."
    parser = Plain("cctuning recipes", description=description)
    parser.add_argument("name", nargs="?", help="print this one, to change a copy: cctuning recipes NAME > mine.yaml")
    args = parser.parse_args(argv)
    if args.name is not None:
        print(find(args.name, recipes() | accelerate_configs(), "name").read_text(encoding="utf-8"), end="")
        return
    print("cctuning train --config NAME --data rows.jsonl --parallel pairs.tsv --output_dir DIR")
    print("Flags override the recipe.\n")
    for name, path in recipes().items():
        print(f"  {name:20} {summary(path)}")
    print("\nSeveral GPUs: cctuning train --accelerate_config NAME --num_processes N …\n")
    for name, path in accelerate_configs().items():
        print(f"  {name:20} {summary(path)}")
