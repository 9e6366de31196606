"""`cctuning pair INPUT … --output DIR`, or `--config recipe.yaml`; `pair select`, `pair names`, `pair mine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cctuning.cli.options import parse
from cctuning.errors import UserError, nearest
from cctuning.extras import require

if TYPE_CHECKING:
    from cctuning.pairing.options import PairOptions, PairSource


def main(argv: list[str]) -> None:
    """Parse the options, pair, and print a summary."""
    if argv and argv[0] in ACTIONS:
        return ACTIONS[argv[0]](argv[1:])
    meant = nearest(argv[0], ACTIONS) if argv and argv[0].isalpha() and not Path(argv[0]).exists() else ""
    if meant:
        raise UserError(f"{argv[0]!r} is neither a file nor one of {', '.join(ACTIONS)}.{meant}")
    from cctuning.pairing.options import Checks, PairOptions

    description = "Find, join or make the parallel of every row and check it: cctuning pair INPUT ... --output DIR."
    description += f" Also: cctuning pair {' | '.join(ACTIONS)} (each with --help)."
    options, checks = parse("cctuning pair", description, (PairOptions, Checks), _named(argv, "--inputs"))
    for module in ("lingua", "sklearn"):  # before any rows are read
        require(module, "cctuning pair", "pair")
    sources = sources_of(options)
    from cctuning.pairing.output import REJECTS
    from cctuning.pairing.run import pair

    card = pair(sources, options, checks)
    rows = f"{options.output}/rows.jsonl"
    for note in (*card["notes"], *(note for source in card["sources"] for note in source["notes"])):
        print(f"note: {note}")
    languages = ", ".join(f"{lang} {times}" for lang, times in card["languages"].items())
    print(f"rows:     {card['rows']} ({languages}) with {card['parallels']} distinct parallels: {rows}")
    reasons = ", ".join(f"{reason} {times}" for reason, times in card["rejected"].items()) or "none"
    print(f"rejected: {card['rejected_rows']} ({reasons}): {options.output}/{REJECTS}")
    print(f"card:     {options.output}/card.md")
    print(f"next:     {train_on(rows) if card['with_response'] else align_to(rows)}")


def _named(argv: list[str], flag: str) -> list[str]:
    """Arguments before the first flag as values of `flag`."""
    first = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    return [flag, *argv] if first else argv


def select(argv: list[str]) -> None:
    """`cctuning pair select CORPUS … --near ROWS --count N --output DIR`."""
    from cctuning.pairing.selecting import SelectOptions
    from cctuning.pairing.selecting import select as choose

    description = "Choose the pairs of a parallel corpus that are nearest to a task's own rows."
    (options,) = parse("cctuning pair select", description, (SelectOptions,), _named(argv, "--corpus"))
    card = choose(options)
    for note in card["notes"]:
        print(f"note: {note}")
    languages = ", ".join(f"{lang} {told['pairs']}" for lang, told in card["languages"].items())
    print(f"rows:     {card['rows']} ({languages}): {options.output}/rows.jsonl")
    print(f"card:     {options.output}/card.json")
    print(f"next:     {align_to(f'{options.output}/rows.jsonl')}")


def names(argv: list[str]) -> None:
    """`cctuning pair names --lang sw te … --output FILE`."""
    from cctuning.pairing.names import NamesOptions
    from cctuning.pairing.names import names as collect

    description = "Write pairs of names from CLDR, Wikidata labels and glossaries."
    (options,) = parse("cctuning pair names", description, (NamesOptions,), argv)
    report = collect(options)
    for note in report.notes:
        print(f"note: {note}")
    if report.same:
        print(f"note: left out: {report.same} identical in both languages.")
    for lang, counts in report.counts.items():
        print(f"{lang}: {counts.total()} names ({', '.join(f'{kind} {times}' for kind, times in counts.items())})")
    print(f"next: {align_to(options.output)}")


def mine(argv: list[str]) -> None:
    """`cctuning pair mine TEXT.sw TEXT.en --output FILE`."""
    from cctuning.pairing.mining import MineOptions
    from cctuning.pairing.mining import mine as join

    description = "Align the sentences of two unaligned files with a sentence encoder."
    (options,) = parse("cctuning pair mine", description, (MineOptions,), _named(argv, "--files"))
    found, (texts, references) = join(options)
    for note in found.notes:
        print(f"note: {note}")
    print(f"rows: {len(found.pairs)} of {texts} and {references} sentences, margin {found.threshold:.3f} and above")
    print(f"next: read some of {options.output} (the least confident are last), then {align_to(options.output)}")


ACTIONS = {"select": select, "names": names, "mine": mine}


def sources_of(options: PairOptions) -> list[PairSource]:
    """The sources of the recipe, or those that the inputs and flags describe."""
    from cctuning.data.parallel.filenames import pair_of_paths
    from cctuning.pairing.options import PairSource

    if options.sources:
        given = [name for name in ("inputs", "way", "lang", "join", "translate", "licence") if getattr(options, name)]
        if given:
            raise UserError(f"{', '.join(given)}: describe one source; with sources: in a recipe, set them there.")
        return [PairSource.from_dict(source, f"sources[{n}]") for n, source in enumerate(options.sources)]
    if not options.inputs:
        raise UserError("no input: cctuning pair INPUT ... --output DIR, or --config with sources:. See --help.")
    if options.key != ["id"] and not options.join:
        raise UserError("--key: goes with --join; name the English side, or leave it out.")
    if options.join and options.translate:
        raise UserError("--join and --translate exclude each other; use a recipe for both.")
    common: dict[str, Any] = {"lang": options.lang, "licence": options.licence}
    way = options.way
    if options.join:
        way = way or "join"
        common |= {"english": {"path": options.join}, "key": options.key}
    if options.translate:
        common["engine"] = _engine(options.translate)
        way = way or "translate"
        if way == "translation":
            common |= {"into": [options.lang] if options.lang else [], "lang": None}
    ways = [way or _way(path, options.reference_language) for path in options.inputs]
    given_ways = list(zip(options.inputs, ways, strict=True))
    rows = [PairSource(path, way=one, **common) for path, one in given_ways if one != "parallel"]
    paths = pair_of_paths([path for path, one in given_ways if one == "parallel"], options.reference_language)
    sides = [(one["path"], {"path": one["reference"]}) if isinstance(one, dict) else (one, {}) for one in paths]
    return rows + [PairSource(path, way="parallel", english=english, **common) for path, english in sides]


def _way(path: str, language: str) -> str:
    """`parallel` if a file or directory holds parallel text that cannot be rows, else `given`."""
    from cctuning.data.parallel.columns import recognise
    from cctuning.data.parallel.filenames import suffix_of
    from cctuning.data.readers import SUFFIXES, local_path, open_records
    from cctuning.data.row_reader import PROMPTS
    from cctuning.data.schema import BadRow

    local = local_path(path)
    if not local.exists():
        return "given"
    if local.is_file() and suffix_of(path) not in SUFFIXES:  # plain text, TMX, zip
        return "parallel"
    try:
        records = open_records(path)[0]
        found: Any = records.columns or next(
            (one for _, one in records.iterate(()) if not isinstance(one, BadRow)), ()
        )
    except UserError:  # the reader of parallel text reads it, or tells what is wrong with it
        return "parallel"
    if PROMPTS & set(found) or "text" in found:
        return "given"
    table = suffix_of(path) == ".tsv" or local.is_dir()
    return "parallel" if found and (table or recognise(list(found), {}, language, None, path)) else "given"


def _engine(words: list[str]) -> dict[str, Any]:
    """`seq2seq model=… batch_size=8` as a mapping; values are parsed as YAML."""
    engine: dict[str, Any] = {"engine": words[0]}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--translate: {word!r}: expected OPTION=VALUE after the engine's name.")
        try:
            engine[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"--translate: {word!r}: the value is not valid YAML ({error}); put it in quotes."
            ) from error
    return engine


def train_on(rows: str) -> str:
    """The command that trains on rows with answers."""
    return f"cctuning train --config align --model MODEL --data {rows} --output_dir DIR"


def align_to(text: str) -> str:
    """The commands that use parallel text without answers."""
    return (
        f"cctuning align MODEL --config pack --parallel {text} --output_dir DIR, or beside rows with answers: "
        f"cctuning train --config align --model MODEL --data ROWS --parallel {text} --output_dir DIR"
    )
