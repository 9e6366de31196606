"""One language pack for several tasks: a task of one world, with the parallel text of all of them.

The pack reads the sentences of SIB-200 and the names of emoji and of BMLAMA's subjects, whichever task follows: it is
made once and used three times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.real.worlds import Item, Text, World


@dataclass
class Several:
    """The rows and questions of `task`, with the parallel text of all `worlds`.

    Attributes:
        worlds: name -> world; all in the same languages. sources: source of each world's text.
    """

    task: str
    worlds: Mapping[str, World]
    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        own = self.worlds[self.task]
        self.name, self.languages = f"several-{self.task}", own.languages
        self.first_token, self.writes = own.first_token, own.writes

    def rows(self, text: Text) -> list[dict[str, str]]:
        """Answered rows of the task."""
        return self.worlds[self.task].rows(text)

    def pairs(self, text: Text) -> list[dict[str, str]]:
        """Parallel text of all worlds, the same for every task: neither labels nor order matter."""
        whole = replace(text, labels=0, sentences=0, order=0)
        return [
            pair
            for name, world in self.worlds.items()
            for pair in world.pairs(replace(whole, source=self.sources[name]))
        ]

    def items(self, split: str, lang: str) -> list[Item]:
        """Questions of the task."""
        return self.worlds[self.task].items(split, lang)

    def texts(self) -> list[str]:
        """Every string that may be tokenised, of all tasks: their checkpoints are the same."""
        return [string for world in self.worlds.values() for string in world.texts()]
