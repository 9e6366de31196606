"""The data card of `cctuning pair`: rows, sources, rejected rows and lengths, as JSON and as Markdown."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cctuning.identify import expected_scripts, identifiable
from cctuning.markdown import table
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.options import Checks

if TYPE_CHECKING:
    from cctuning.pairing.run import Run

SHOWN = 20  # evaluation hits in the Markdown


def make_card(
    run: Run, order: NDArray[np.int64], checks: Checks, benchmarks: Benchmarks | None, files: dict[str, str]
) -> dict[str, Any]:
    """The card as plain JSON types.

    Args:
        run: the finished run.
        order: the rows that were written.
        checks: the thresholds.
        benchmarks: evaluation texts that rows were compared with.
        files: of the output, with hashes.
    """
    options, figures = run.options, run.figures
    counts = figures.counts(order) if len(order) else {}
    languages: dict[str, int] = {}
    for (_, lang), times in sorted(counts.items()):
        languages[lang] = languages.get(lang, 0) + times
    unit = "tokens" if options.tokenizer else "words"
    with_response = figures.with_response(order)
    sources = []
    for number, account in enumerate(run.accounts):
        own = {lang: times for (source, lang), times in counts.items() if source == number}
        given = {key: value for key, value in asdict(account.source).items() if value not in (None, [], {})}
        told = {"read": account.read, "rows": sum(own.values()), "languages": own, "rejected": account.rejected}
        engines = {"engines": account.usage} if account.usage else {}
        sources.append({**given, **told, **engines, "fingerprints": account.fingerprints, "notes": account.notes})
    return {
        "made_by": f"cctuning pair, cc-tuning {version('cc-tuning')}, lingua {version('lingua-language-detector')}",
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "reference_language": options.reference_language,
        "rows": len(order),
        "with_response": with_response,
        "without_response": len(order) - with_response,
        "parallels": figures.groups(order) if len(order) else 0,
        "languages": languages,
        "sources": sources,
        "rejected_rows": run.rejected_rows,
        "rejected": dict(run.rejected.most_common()),
        "lengths_in": options.tokenizer or "whitespace-separated words",
        "lengths": figures.table(order, unit),
        "usual": {lang: asdict(usual) for lang, usual in figures.usual.items()},
        "meaning": {"encoder": options.encoder, "learned": run.meanings} if run.meanings else None,
        "against": {
            "paths": options.against,
            "hits": run.hits,
            "files": benchmarks.fingerprints if benchmarks else {},
        },
        "checks": asdict(checks),
        "notes": [*_notes(figures.langs, options.reference_language), *run.notes],
        "files": files,
    }


def _notes(langs: list[str], language: str) -> list[str]:
    notes = []
    blind = [lang for lang in (*langs, language) if not identifiable(lang)]
    if blind:
        notes.append(
            f"{', '.join(blind)}: no language model; rows were only checked for script and for not being English."
        )
    unknown = [lang for lang in langs if not expected_scripts(lang)]
    if unknown:
        notes.append(f"{', '.join(unknown)}: the script is unknown and was not checked; give it, as in sr-Latn.")
    return notes


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    unit = "tokens" if card["lengths_in"] != "whitespace-separated words" else "words"
    lines = [
        "# Data card",
        "",
        f"{card['rows']} rows ({card['with_response']} with a response, {card['without_response']} for the alignment "
        f"alone) with {card['parallels']} distinct parallels in {card['reference_language']}; {card['rejected_rows']} "
        f"rejected. {card['made_at']}, {card['made_by']}.",
        "",
        "## Sources",
        "",
    ]
    rows = []
    for source in card["sources"]:
        name = source["path"] + (f" ({source['name']})" if source.get("name") else "")
        rejected = ", ".join(f"{reason} {times}" for reason, times in source["rejected"].items()) or "none"
        languages = ", ".join(f"{lang} {times}" for lang, times in source["languages"].items())
        cells = [name, source["way"], source.get("licence", "not given"), source["read"], source["rows"]]
        rows.append([*cells, languages, rejected])
    lines.append(table(["source", "way", "licence", "read", "rows", "languages", "rejected"], rows))
    lines += [
        "",
        "## Languages",
        "",
        f"Lengths are medians, and in brackets the 95th percentile ({card['lengths_in']}).",
    ]
    parts = ("prompt", "parallel", "response")
    rows = []
    for lang, times in card["languages"].items():
        lengths = card["lengths"][lang]
        cells = [
            f"{lengths[part][unit]['median']:.0f} ({lengths[part][unit]['p95']:.0f})" if part in lengths else ""
            for part in parts
        ]
        usual = card["usual"].get(lang)
        ratio = f"{usual['ratio']:.2f}" if usual else ""
        rows.append([lang, times, *cells, ratio])
    header = ["language", "rows", *(f"{part}, {unit}" for part in parts), "usual length ratio"]
    lines += ["", table(header, rows)]
    lines += ["", "## Rejected", "", "A row is counted once for each reason it has.", ""]
    lines.append(table(["reason", "rows"], card["rejected"].items()))
    lines += ["", "Thresholds: " + ", ".join(f"{name} {value}" for name, value in card["checks"].items()) + "."]
    if card["meaning"]:
        lines += ["", "## Meaning", "", f"Encoder: {card['meaning']['encoder']}. The shares are estimates.", ""]
        rows = []
        for lang, told in card["meaning"]["learned"].items():
            shares = (f"{told[name]:.1%}" for name in ("wrong", "found_next", "found_random"))
            rows.append([lang, told["rows"], f"{told['similarity']:.2f}", *shares])
        header = ["language", "rows", "usual similarity", "wrong rows", "next row's found", "random row's found"]
        lines.append(table(header, rows))
    against = card["against"]
    if against["paths"]:
        hits = card["rejected"].get("against", 0)
        lines += ["", "## Held against evaluation texts", ""]
        lines += [f"{', '.join(against['paths'])} ({len(against['files'])} files): {hits} rows found and rejected."]
        lines += [f"- {hit['row']}: {hit['says']}" for hit in against["hits"][:SHOWN]]
    notes = [*card["notes"], *(note for source in card["sources"] for note in source["notes"])]
    lines += ["", "## Notes", "", *(f"- {note}" for note in notes)] if notes else []
    engines = [(name, usage) for source in card["sources"] for name, usage in source.get("engines", {}).items()]
    if engines:
        lines += ["", "## Engines", ""]
        lines += [
            f"- {name}: {', '.join(f'{key} {value}' for key, value in usage.items())}" for name, usage in engines
        ]
    prints = {name: value for source in card["sources"] for name, value in source["fingerprints"].items()}
    rows = [[name, value.removeprefix("sha256:")] for name, value in {**prints, **card["files"]}.items()]
    lines += ["", "## Fingerprints", "", table(["file", "sha256 or data set"], rows)]
    return "\n".join(lines) + "\n"
