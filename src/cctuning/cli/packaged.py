"""The recipes and accelerate configurations in the package, by name: `--config cc`, `--accelerate_config ddp`.

They lie beside the code (in a clone a link to `recipes/`), so that an installed `cctuning` has them too.
"""

from __future__ import annotations

from pathlib import Path

import cctuning
from cctuning.errors import UserError, nearest

FOLDER = Path(cctuning.__file__).parent / "recipes"


def recipes() -> dict[str, Path]:
    """Name -> file of each recipe of `cctuning train`."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def launchers() -> dict[str, Path]:
    """Name -> file of each accelerate configuration."""
    return {path.stem: path for path in sorted((FOLDER / "accelerate").glob("*.yaml"))}


def find(given: str, known: dict[str, Path], flag: str) -> Path:
    """The file that `given` is, or is the name of; a file wins over a name.

    Raises:
        UserError: neither.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if given in known:
        return known[given]
    if path.is_dir():
        raise UserError(f"{flag} {given}: a directory; name a YAML file, or one of {', '.join(known)}.")
    hint = nearest(given, known, f" The package has {', '.join(known)}.")
    raise UserError(f"{flag} {given}: no such file, and no name of one in the package.{hint}")


def about(path: Path) -> str:
    """What a file says of itself: its first sentence."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".") + "."
