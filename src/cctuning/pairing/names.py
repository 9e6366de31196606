"""`cctuning pair names`: pairs of names from CLDR, Wikidata labels and glossaries.

A model that cannot recall a fact in a language often does not know the name in the question; align on parallel names
before the answers. CLDR is part of babel: territories, languages, scripts, currencies, cities and units in about 200
languages. Wikidata has names of everything else, glossaries the terms of a field.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from babel import Locale, UnknownLocaleError
from babel.core import get_global

from cctuning.data.parallel.columns import Pair
from cctuning.data.parallel.files import PairReader
from cctuning.data.readers import local_path
from cctuning.data.sources import ParallelSource
from cctuning.data.text import Seen
from cctuning.data.text_files import numbered_lines
from cctuning.errors import UserError, nearest
from cctuning.identify import expected_scripts, scripts
from cctuning.languages import canonical, canonical_or_none, matching
from cctuning.pairing import output
from cctuning.settings import check_values, option

KINDS = ("territory", "language", "script", "currency", "city", "unit")
# Codes for "unknown", and of the territories of pseudo-locales.
NO_PLACE = ("ZZ", "XA", "XB", "Zyyy", "Zzzz", "Zinh", "und", "mul", "zxx", "mis", "XXX", "Etc/Unknown")


@dataclass
class NamesOptions:
    """Sources of names, languages and output."""

    RANGES = {"limit": (0, math.inf)}

    lang: list[str] = option([], "Languages, e.g. sw te yo.")
    output: str = option("", "File to write: .jsonl or .jsonl.gz.")
    cldr: bool = option(True, "Names from CLDR, which is installed.")
    kinds: list[str] = option(list(KINDS), f"Kinds of names from CLDR: {', '.join(KINDS)}.")
    wikidata: list[str] = option([], "Wikidata dumps, or JSON lines with labels (language: name); also compressed.")
    glossary: list[str] = option([], "Glossaries: CSV or TSV with one column per language, TBX, TMX.")
    limit: int = option(0, "Maximum number of names of each language and source; 0: all.")
    reference_language: str = option("en", "Language of the other side.")
    overwrite: bool = option(False, "Replace the file.")

    def __post_init__(self) -> None:
        check_values(type(self), vars(self), "")
        if not self.lang:
            raise UserError(
                "--lang: missing; name languages, e.g. cctuning pair names --lang sw te --output names.jsonl."
            )
        self.lang = list(dict.fromkeys(canonical(lang, "--lang") for lang in self.lang))
        self.reference_language = canonical(self.reference_language, "--reference_language")
        if self.reference_language in self.lang:
            raise UserError(f"--lang {self.reference_language}: is the reference language; name another.")
        for kind in set(self.kinds) - set(KINDS):
            raise UserError(f"--kinds: {kind!r} is not one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        if not self.output:
            raise UserError("--output: missing; name a file, e.g. names.jsonl.")


@dataclass
class NamesReport:
    """Numbers of names written, by language and kind, and notes."""

    counts: dict[str, Counter[str]]  # language to kind to names
    same: int = 0  # names that are the same in both languages, left out
    notes: list[str] = field(default_factory=list)


Name = tuple[str, str, str, str]  # name, reference, language, kind


def names(options: NamesOptions) -> NamesReport:
    """Collect names and write them, each pair once."""
    report = NamesReport({lang: Counter() for lang in options.lang})
    sources = {"CLDR": cldr(options, report)} if options.cldr else {}
    sources |= {path: wikidata(local_path(path), options, report) for path in options.wikidata}
    sources |= {path: _glossary(path, options, report) for path in options.glossary}
    seen = Seen()
    with output.new_file(options.output, options.overwrite) as write:
        for path, source in sources.items():
            taken, any_name = Counter[str](), False
            for name, reference, lang, kind in source:
                any_name = True
                if options.limit and taken[lang] == options.limit:
                    continue
                if name == reference:
                    report.same += 1
                elif seen.add(name, reference, lang):
                    taken[lang] += 1
                    report.counts[lang][kind] += 1
                    write({"text": name, f"text_{options.reference_language}": reference, "lang": lang, "kind": kind})
            if not any_name and path != "CLDR":
                report.notes.append(
                    f"{path}: no name in {', '.join(options.lang)} beside {options.reference_language}."
                )
        if not any(report.counts.values()):
            raise UserError("no names: " + (" ".join(report.notes) or "the sources have none in these languages."))
    report.notes += [f"{lang}: no names." for lang, counts in report.counts.items() if not counts]
    return report


def cldr(options: NamesOptions, report: NamesReport) -> Iterator[Name]:
    """Names from CLDR, kind by kind."""
    reference = _locale(options.reference_language)
    if reference is None:
        raise UserError(f"--reference_language {options.reference_language}: CLDR has no names in it; add --no_cldr.")
    theirs = _kinds(reference)
    for lang in options.lang:
        locale = _locale(lang)
        if locale is None:
            report.notes.append(f"{lang}: CLDR has no names in it; give a Wikidata or glossary file.")
            continue
        ours = _kinds(locale)
        for kind in options.kinds:
            for code, name in ours[kind].items():
                other = theirs[kind].get(code)
                if other is None and kind == "city" and reference.language == "en":  # the name of the time zone
                    other = code.split("/")[-1].replace("_", " ")
                if other and name and code not in NO_PLACE:
                    yield name, other, lang, kind


def _locale(lang: str) -> Locale | None:
    try:
        return Locale.parse(lang.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        return None


def _kinds(locale: Locale) -> dict[str, dict[str, str]]:
    """Kind to code to name, without the names of another language that CLDR falls back on.

    Its root, from which nearly all languages inherit, has English abbreviations of units and English names of cities.
    """
    names = _with_inherited(locale)
    if locale.language == "en":
        return names
    parent = str(get_global("parent_exceptions").get(str(locale), "root"))  # `ht` has French names
    # Nynorsk shares the words of `no` that it inherits.
    others = _with_inherited(Locale(parent if parent[:2] not in (locale.language, "no") else "root"))
    return {
        kind: {code: name for code, name in named.items() if others[kind].get(code) != name}
        for kind, named in names.items()
    }


def _with_inherited(locale: Locale) -> dict[str, dict[str, str]]:
    """Kind to code to name, as CLDR shows them."""
    zones = locale.time_zones
    units = locale._data["unit_display_names"]
    return {
        "territory": dict(locale.territories),
        "language": dict(locale.languages),
        "script": dict(locale.scripts),
        "currency": dict(locale.currencies),
        "city": {str(code): str(zones[code]["city"]) for code in zones if "city" in zones[code]},
        "unit": {code: str(units[code].get("long", units[code].get("short", ""))) for code in units},
    }


def wikidata(path: Path, options: NamesOptions, report: NamesReport) -> Iterator[Name]:
    """Labels of entities in a Wikidata dump (an array with one entity per line), or in JSON Lines with `labels`.

    Many entities have a label in `pt` and none in `pt-BR`; the first is taken then, with a note. `mul` is shown in
    every language that has no label. Where it is in the reference language's script, it is the reference; in another
    language a missing label does not say that the name is the same.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Wikidata dump or JSON lines with labels.")
    others: dict[str, Counter[str]] = {}
    for number, raw in numbered_lines(path):
        line = raw.strip().rstrip(b",")
        if line in (b"", b"[", b"]"):
            continue
        try:
            labels = json.loads(line).get("labels", {})
            texts = ((code, label["value"] if isinstance(label, Mapping) else label) for code, label in labels.items())
            found = {code: str(text).strip() for code, text in texts}
        except (ValueError, AttributeError):
            raise UserError(f"{path}:{number}: expected a JSON object with labels (language: name).") from None
        codes = {str(canonical_or_none(code) or code): code for code in found}
        own = codes.get(options.reference_language)
        reference = found.get(own or "mul", "")
        if own is None and not scripts(reference).keys() & set(expected_scripts(options.reference_language)):
            continue
        for lang in options.lang:
            for code in matching(lang, codes)[:1]:
                if code != lang:
                    others.setdefault(lang, Counter())[code] += 1
                yield found[codes[code]], reference, lang, "wikidata"
    for lang, counts in others.items():
        taken = ", ".join(f"{code} ({times})" for code, times in counts.most_common())
        report.notes.append(f"{path}: entities without a label in {lang}: that in another variant is taken: {taken}.")


def _glossary(path: str, options: NamesOptions, report: NamesReport) -> Iterator[Name]:
    """The terms of a glossary, in any format of parallel text."""
    for lang in options.lang:
        reader = PairReader(ParallelSource(path, lang=lang), options.reference_language)
        bad: list[str] = []
        for found in reader.read():
            if isinstance(found, Pair):
                yield found.text, found.reference, lang, "glossary"
            else:
                bad.append(f"{found[0]}: {found[1]}")
        report.notes += reader.notes()
        if bad:
            report.notes.append(f"{path}: {lang}: {len(bad)} entries were skipped, the first: {bad[0]}")
