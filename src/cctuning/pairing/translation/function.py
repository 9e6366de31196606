"""Translate with a function of the user: `f(texts, source, target)` returns a list with one translation per text.

The function is named `module:name` and imported, also from the working directory. A change of its module's file
changes the cache keys.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.pairing.translation.translator import Answer, Done, Engine, SegmentOptions
from cctuning.settings import from_mapping, option


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(SegmentOptions):
    """The function and its batch size."""

    function: str = option(help="module:name of f(texts, source, target) -> list of translations.")
    batch_size: int = option(64, "Texts per call.", least=1)


class Function(Engine):
    """The function engine."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options: FunctionOptions = from_mapping(FunctionOptions, options, "translation engine function")
        self.name = f"function {self.options.function}"
        self._function, self._file = _imported(self.options.function)
        self.counts = Counter(requests=0)

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """The function's name, and a hash of its module's file if there is one."""
        return {"engine": "function", "function": self.options.function, "file": self._file}

    def run(self, segments: Sequence[str], source: str, target: str, done: Done) -> None:
        for start in range(0, len(segments), self.options.batch_size):
            texts = list(segments[start : start + self.options.batch_size])
            self.counts["requests"] += 1
            try:
                translations = self._function(texts, source, target)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[:2][-1]  # in the function
                says = f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
                raise UserError(
                    f"{self.name}: raised {says} at {Path(place.filename).name}:{place.lineno} for one of "
                    f"{len(texts)} texts, the first of them {texts[0][:60]!r}; correct it, or return an empty text "
                    "where there is no translation."
                ) from error
            count = len(translations) if isinstance(translations, (list, tuple)) else type(translations).__name__
            if count != len(texts):
                raise UserError(f"{self.name}: expected a list of {len(texts)} translations, one a text; got {count}.")
            for index, translation in enumerate(translations, start):
                if not isinstance(translation, str):
                    raise UserError(
                        f"{self.name}: expected text for {segments[index][:60]!r}, got {translation!r:.60}; "
                        "return an empty text where there is no translation."
                    )
                empty = Answer(None, "empty translation", passing=True)
                done(index, Answer(translation) if translation.strip() else empty)


def _imported(place: str) -> tuple[Callable[[list[str], str, str], Any], str | None]:
    """The function, and a hash of its module's file."""
    module_name, _, name = place.partition(":")
    if not module_name or not name.isidentifier():
        raise UserError(f"function: expected module:name, got {place!r}.")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that it imports is missing
        raise UserError(f"function: no module {module_name!r} in the working directory or installed.") from None
    finally:
        sys.path.remove(os.getcwd())
    function, file = getattr(module, name, None), getattr(module, "__file__", None)
    if not callable(function):
        raise UserError(f"function: module {module_name!r} has no function {name!r}.")
    return function, file_hash(Path(file)) if file else None
