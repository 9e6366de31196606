"""Write Markdown tables from the records of a plan, with intervals, English, time and memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.markdown import table
from experiments.real.cells import cell_of
from experiments.real.figures import Record, Tiers, accuracy, best, difference, others, signed, spread
from experiments.real.recipes import Setting
from experiments.real.worlds import ENGLISH, Text

SEEDS, RATES = "-seeds", "-rate"  # suffixes of groups that belong to another


def records_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read records from JSON lines files (.gz too); of two with the same cell the later one counts.

    Raises:
        UserError: a file that is not there, or a line that is no record.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the JSON lines that a plan's workers write.")
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, text in enumerate(raw.decode().splitlines(), 1):
            try:
                record = json.loads(text)
                found[json.dumps([record.get("group"), record["cell"]], sort_keys=True)] = record
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}:{number}: not a record ({error}); delete the line or run the plan again."
                ) from None
    return list(found.values())


class Results:
    """Records by group of the plan."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.groups: dict[str, list[Record]] = {}
        for record in records:
            self.groups.setdefault(str(record.get("group", record["cell"]["recipe"])), []).append(record)

    def chosen(self, group: str) -> list[Record]:
        """The group's best record on `dev`, over all its rates, and the records of that choice's other seeds."""
        records = [*self.groups.get(group, []), *self.groups.get(group + RATES, [])]
        if not records:
            return []
        first = records[best({number: [record] for number, record in enumerate(records)})]
        same = [record for record in self.groups.get(group + SEEDS, []) if _options(record) == _options(first)]
        return [first, *same]

    def of(self, group: str) -> list[Record]:
        """The group's choice with its seeds if it has a search (several records of a seed); else all its records."""
        found = self.groups[group]
        searched = len({record["cell"]["seed"] for record in found}) < len(found)
        return self.chosen(group) if searched else [*found, *self.groups.get(group + SEEDS, [])]

    @property
    def tiers(self) -> Tiers:
        """Tiers by plain SFT."""
        return Tiers.of(self.chosen("plain"))


def _options(record: Record) -> Setting:
    """The record's setting without the text that it draws; an older record lacks newer options."""
    return replace(cell_of(record["cell"]).setting, text=Text())


def main_table(results: Results, groups: Mapping[str, str], against: str = "plain") -> str:
    """A line for each group: seeds, English, the other languages and their tiers, and the difference to `against`.

    Args:
        groups: group -> what to call it.
    """
    base = results.chosen(against)
    every = others(base[0])
    tiers, never = results.tiers, _never(results)
    given = [lang for lang in every if lang not in never]
    head = ["recipe", "seeds", "English", "x", "low", "mid", "high", "with text", "without"]
    head += [f"{name} - {against}" for name in ("x", "low", "without", "English")] + ["s", "GB"]
    lines = []
    for group, name in groups.items():
        records = results.chosen(group)
        if not records:
            continue
        sets = (every, list(tiers.low), list(tiers.mid), list(tiers.high), given, never)
        cells = [f"{accuracy(records, 'test', chosen):.1f}" if chosen else "" for chosen in sets]
        if len(records) > 1:
            cells[0] += f" ±{spread(records, 'test', every):.1f}"
        told = [name, str(len(records)), f"{accuracy(records, 'test', [ENGLISH]):.1f}", *cells]
        for chosen in (every, list(tiers.low), never, [ENGLISH]):
            told.append("" if group == against or not chosen else signed(difference(base, records, "test", chosen)))
        told += [f"{max(one['seconds']['training'] for one in records):.0f}"]
        told += [f"{max(one['memory_mb'] for one in records) / 1024:.1f}"]
        lines.append(told)
    return table(head, lines)


def pair_table(results: Results, pairs: Sequence[tuple[str, Sequence[Record], Sequence[Record]]]) -> str:
    """A line for each pair: its name, the records, and the records that are subtracted."""
    tiers, never = results.tiers, _never(results)
    lines = []
    for name, one, two in pairs:
        if one and two:
            every = others(one[0])
            sets = (every, list(tiers.low), [lang for lang in every if lang not in never], never, [ENGLISH])
            lines.append([name, *(signed(difference(two, one, "test", chosen)) for chosen in sets)])
    return table(["difference", "x", "low", "with text", "without", "English"], lines)


def search_table(results: Results, groups: Sequence[str], options: Sequence[str]) -> str:
    """A line for every cell of the searches: the options tried, and the results."""
    head = ["recipe", *options, "dev: English", "dev: x", "test: x", "training, s", "memory, GB"]
    lines = []
    for group in groups:
        for record in (*results.groups.get(group, []), *results.groups.get(group + RATES, [])):
            setting, every = record["cell"]["setting"], others(record)
            told = [str(setting[name]) if setting[name] is not None else "" for name in options]
            scores = [accuracy([record], "dev", [ENGLISH]), accuracy([record], "dev", every)]
            scores.append(accuracy([record], "test", every))
            cost = [f"{record['seconds']['training']:.0f}", f"{record['memory_mb'] / 1024:.1f}"]
            lines.append([group, *told, *(f"{score:.1f}" for score in scores), *cost])
    return table(head, lines)


def language_table(results: Results, groups: Mapping[str, str]) -> str:
    """Accuracy by language."""
    plain = results.chosen("plain")
    languages = sorted(others(plain[0]), key=lambda lang: accuracy(plain, "dev", [lang]))
    chosen = {name: results.chosen(group) for group, name in groups.items() if results.chosen(group)}
    lines = []
    for lang in (ENGLISH, *languages):
        lines.append([lang, *(f"{accuracy(records, 'test', [lang]):.1f}" for records in chosen.values())])
    return table(["language", *chosen], lines)


def seed_table(records: Sequence[Record], against: Sequence[str], split: str = "test") -> str:
    """A line for each group of a plan: accuracy, each language, and the difference to some groups.

    Args:
        split: `test`, or one of the flags of written answers.
    """
    results = Results(records)
    languages = others(records[0])
    differences = [f"{what} - {name}" for name in against for what in ("x", "English")]
    lines = []
    for name in results.groups:
        if name.endswith(SEEDS):
            continue
        found = results.of(name)
        x = f"{accuracy(found, split, languages):.1f}" + (
            f" ±{spread(found, split, languages):.1f}" if len(found) > 1 else ""
        )
        cells = [f"{accuracy(found, split, [lang]):.1f}" for lang in languages]
        told = [name, str(len(found)), f"{accuracy(found, split, [ENGLISH]):.1f}", x, *cells]
        for other in against:
            for chosen in (languages, [ENGLISH]):
                told.append("" if other == name else signed(difference(results.of(other), found, split, chosen)))
        lines.append([*told, f"{max(one['seconds']['training'] for one in found):.0f}"])
    return table(["", "seeds", "English", "x", *languages, *differences, "s"], lines)


def _never(results: Results) -> list[str]:
    """Return the languages without parallel text in the plan."""
    for group in ("pack", "align"):
        for record in results.groups.get(group, []):
            return list(record["cell"]["setting"]["text"]["without"])
    return []
