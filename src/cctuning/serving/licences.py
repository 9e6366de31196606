"""Licences that an export must name: the base's, as its own card says, and those of the rows, as they were given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard


@dataclass(frozen=True)
class Licence:
    """What a model's card says of its licence.

    Attributes:
        id: the hub's identifier (`apache-2.0`, `other`, …).
        name, link: where the identifier is `other`.
    """

    id: str
    name: str | None = None
    link: str | None = None


def base_licence(base: str | None) -> Licence | None:
    """The licence in the base's own model card (README.md beside its weights, or on the hub); None where it says
    none, or cannot be reached."""
    if not base:
        return None
    where = Path(base) / "README.md" if Path(base).is_dir() else base
    try:
        told = ModelCard.load(where).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(told.get("license"), str):
        return None
    return Licence(told["license"], told.get("license_name"), told.get("license_link"))


def row_licences(path: str, fingerprints: Iterable[str]) -> list[str]:
    """Licences of a run's rows, where the card.json of `cctuning pair` lies beside them and is of these very files.

    Args:
        path: of the rows, as the run read them.
        fingerprints: of the files read.
    """
    place = Path(path)
    for folder in (place, place.parent, place.parent.parent):  # rows.jsonl, or rows/ with shards in it
        card = _json(folder / "card.json")
        files = card.get("files")
        if isinstance(files, dict) and set(fingerprints) & set(files.values()):
            sources = [source for source in card.get("sources", []) if isinstance(source, dict)]
            return [f"{_name(source)}: {source.get('licence') or 'not given'}" for source in sources]
    return []


def _name(source: dict[str, Any]) -> str:
    path = str(source.get("path", "?"))
    return Path(path).name if Path(path).is_absolute() or Path(path).exists() else path


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
