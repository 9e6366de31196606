"""Write `cctuning_export.json`: what no other file of an export says to programs beside a server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cctuning import __version__

EXPORT_FILE = "cctuning_export.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What an export is.

    Attributes:
        kind: `merged` (`fold` in older exports) or `lora`.
        base: the base model: name or path for a LoRA, else its name on the hub; None where not known.
        reference_language: of training.
        languages: of training, without the reference language, most rows first; empty where not known.
        chat: whether prompts are rendered with the chat template in the directory, or sent as they are.
        stop_token_ids: EOS tokens, as in generation_config.json.
        stop: stop string, where the template ends a turn with ordinary text.
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
