"""SIB-200 with English that a translator made, beside its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.real.text import translated
from experiments.real.worlds import Sib200, Text

MACHINE = "machine"  # a source of text


@dataclass
class Translated(Sib200):
    """SIB-200 whose source `machine` is its own text with English by `translator`, a MODULE:NAME."""

    sources: tuple[str, ...] = ("own", MACHINE)
    translator: str = "examples.apertium_translator:translate"

    def pairs(self, text: Text) -> list[dict[str, str]]:
        """Parallel text: text, reference (English), lang."""
        if text.source != MACHINE:
            return super().pairs(text)
        return translated(super().pairs(replace(text, source="own")), self.translator)
