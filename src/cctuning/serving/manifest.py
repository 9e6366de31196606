"""`cctuning_export.json`: what a program beside a server must know of an export and no other file says.

Above all the language that the base is left to answer in (routing.py), and whether prompts are rendered with a chat
template at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cctuning import __version__
from cctuning.errors import UserError

EXPORT_FILE = "cctuning_export.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What an export is.

    Attributes:
        kind: `merged` (`fold` in older exports), `lora` or `code`.
        base: the base model: name or path for a LoRA, else its name on the hub; None where not known.
        reference_language: the language that training borrowed from.
        languages: those trained in beside it, the most rows first; empty where not known.
        chat: prompts are rendered with the chat template that lies beside; False: given as they are.
        stop_token_ids: where generation ends; in generation_config.json too.
        stop: text at which an answer ends, where the template ends a turn with ordinary text: send it as `stop`.
    """

    kind: str
    base: str | None
    reference_language: str
    languages: list[str] = field(default_factory=list)
    chat: bool = False
    stop_token_ids: list[int] = field(default_factory=list)
    stop: str | None = None

    def write(self, directory: Path) -> None:
        record: dict[str, Any] = {"format": FORMAT, "made_by": f"cc-tuning {__version__}", **asdict(self)}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (directory / EXPORT_FILE).write_text(text, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an export.

    Raises:
        UserError: none there, or one that cannot be read.
    """
    file = directory / EXPORT_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a directory that `cctuning export` wrote.")
    again = "export again with this version"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise UserError(f"{file}: not of format {FORMAT}, which this version reads; {again}.")
        del record["made_by"]
        return Manifest(**record)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {again}.") from error
