"""Join rows with their parallels in another data set by key; the reference-language side is held in memory.

A key with several records is used only where they all have the same prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cctuning.data.schema import BadRow, Row
from cctuning.errors import UserError
from cctuning.pairing.candidates import Candidate, Problem

INDEX = "index"


def key_of(record: Mapping[str, Any], number: int, key: Sequence[str]) -> str | None:
    """The record's key as text; None where a column of it is missing or empty. `5`, `5.0` and `"5"` are one key."""
    if list(key) == [INDEX]:
        return str(number)
    parts = [record.get(column) for column in key]
    if any(part is None or part == "" for part in parts):
        return None
    return json.dumps([_key_part(part) for part in parts], ensure_ascii=False, default=str)


def _key_part(part: Any) -> Any:
    if isinstance(part, (list, dict)):
        return part
    # pandas makes floats of whole numbers where one is missing
    return str(int(part)) if isinstance(part, float) and part.is_integer() else str(part)


class ReferenceSide:
    """The records of the reference language under their keys.

    Attributes:
        records: how many there are, good or not; the position is the key where rows are joined by index.
        unused: those that are not rows or have no key, with the reason.
    """

    def __init__(self, key: Sequence[str], path: str, rows: Iterable[tuple[str, Mapping[str, Any], Row | BadRow]]):
        self.key, self.records, self.unused = key, 0, list[str]()
        # Key to the different prompts under it, each with its response and origin.
        self._found: dict[str, dict[str, tuple[str | None, str]]] = {}
        for number, (origin, record, row) in enumerate(rows):
            self.records += 1
            found = key_of(record, number, key)
            if isinstance(row, BadRow):
                self.unused.append(f"{origin}: {row}")
            elif found is None:
                columns = ", ".join(record)
                self.unused.append(f"{origin}: no value under {', '.join(key)}; it has the columns {columns}.")
            else:
                prompt = json.dumps(row.prompt, ensure_ascii=False)
                self._found.setdefault(found, {}).setdefault(prompt, (row.response, origin))
        if not self._found:
            first = self.unused[0] if self.unused else "it is empty."
            raise UserError(f"{path}: no record can be joined; the first: {first}")

    def match(self, row: Candidate, key: str | None) -> None:
        """Give `row` the parallel under `key`, or the reason why it has none as its problem."""
        found = self._found.get(key or "", {})
        if len(found) == 1:
            ((prompt, (row.reference_response, row.reference_origin)),) = found.items()
            row.reference = json.loads(prompt)
            return
        if key is None:
            says = f"its key is empty ({', '.join(self.key)})."
        elif not found:
            says = f"no record of the other side has the key {key}."
        else:
            where = " and ".join([origin for _, origin in found.values()][:2])
            says = f"the key {key} has {len(found)} different prompts on the other side: {where}."
        row.problems.append(Problem("join", says))
