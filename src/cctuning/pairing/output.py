"""Write the output of `cctuning pair`: a directory or file that appears only when it is complete, and the data card.

The card has rows, sources and what was left out, as JSON and Markdown.
"""

from __future__ import annotations

import datetime
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cctuning.data.readers import CARD, local_path
from cctuning.errors import UserError
from cctuning.files import directory_atomically, make_parents
from cctuning.identify import expected_scripts, has_model
from cctuning.markdown import templates

if TYPE_CHECKING:
    from cctuning.pairing.run import Run

TABLE, REJECTS = "card.md", "rejects.jsonl"


def check(output: Path, overwrite: bool) -> None:
    """Check the output before any work is done."""
    if not output.name:
        raise UserError("--output: missing; name a new directory.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / CARD).is_file():
            raise UserError(
                f"--output {output}: exists and was not written by `cctuning pair`; name another directory."
            )
        with suppress(ValueError):  # without a row, as where a server was down, the run is given again
            overwrite |= json.loads((output / CARD).read_text(encoding="utf-8")).get("rows") == 0
        if not overwrite:
            raise UserError(f"--output {output}: holds a finished run; name another directory, or add --overwrite.")


@contextmanager
def draft(output: Path) -> Iterator[Path]:
    """A temporary directory that replaces `output`, or is removed if an exception is raised."""
    with directory_atomically(output) as folder:
        yield folder
        shutil.rmtree(output, ignore_errors=True)


@contextmanager
def new_file(output: str, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes a row to a new file, which appears only when it is complete; .gz is compressed."""
    place = local_path(output)
    if place.exists() and not overwrite:
        raise UserError(f"--output {place}: exists; name another file, or add --overwrite.")
    make_parents(place)
    partial = place.with_name(f".{place.name}.draft")
    opened: Callable[..., Any] = gzip.open if place.suffix == ".gz" else open
    try:
        with opened(partial, "wb") as file:
            yield lambda row: file.write(line(row))
        partial.rename(place)
    finally:
        partial.unlink(missing_ok=True)


def line(value: Any) -> bytes:
    """A line of JSON. Dates, decimals and bytes, which Parquet has, are written as text."""
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"


def line_at(file: IO[bytes], offset: int) -> bytes:
    """The line that begins at `offset`."""
    file.seek(offset)
    return file.readline()


def write_card(folder: Path, card: Any) -> None:
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def made_by(command: str, *packages: str) -> dict[str, str]:
    """The command, the versions of the packages, and the time."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("cc-tuning", *packages))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"made_by": f"{command}, {versions}", "made_at": now}


def make_card(run: Run, order: NDArray[np.int64], files: dict[str, str]) -> dict[str, Any]:
    """The card of a finished run as plain JSON types. `order`: the rows written; `files`: the hashes of the output."""
    options, corpus = run.options, run.corpus
    counts = corpus.counts(order)
    languages: Counter[str] = Counter()
    for (_, lang), times in sorted(counts.items()):
        languages[lang] += times
    with_response = int(corpus.rows["answered"][order].sum())
    sources = []
    for account in run.accounts:
        own = {lang: times for (source, lang), times in counts.items() if source == account.number}
        given = {key: value for key, value in asdict(account.source).items() if value not in (None, [], {})}
        told = {"read": account.read, "rows": sum(own.values()), "languages": own, "rejected": account.rejected}
        engines = {"engines": account.usage} if account.usage else {}
        sources.append({**given, **told, **engines, "fingerprints": account.fingerprints, "notes": account.notes})
    notes = []
    if blind := [lang for lang in (*corpus.langs, options.reference_language) if not has_model(lang)]:
        notes.append(f"{', '.join(blind)}: no language model; only the script and not being English were checked.")
    if unknown := [lang for lang in corpus.langs if not expected_scripts(lang)]:
        notes.append(f"{', '.join(unknown)}: the script is unknown and was not checked; give it, as in sr-Latn.")
    return {
        **made_by("cctuning pair", "lingua-language-detector"),
        "reference_language": options.reference_language,
        "rows": len(order),
        "with_response": with_response,
        "without_response": len(order) - with_response,
        "parallels": len(np.unique(corpus.rows["group"][order])),
        "languages": dict(languages),
        "sources": sources,
        "rejected_rows": run.rejected_rows,
        "rejected": dict(run.rejected.most_common()),
        "usual": {lang: asdict(usual) for lang, usual in corpus.usual.items()},
        "meaning": {"encoder": options.encoder, "learned": run.meanings} if run.meanings else None,
        "against": {"paths": options.against, "files": run.benchmarks.fingerprints if run.benchmarks else {}},
        "checks": asdict(corpus.checks),
        "notes": notes + run.notes,
        "files": files,
    }


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown, from the template card.md."""
    own = templates(Path(__file__).parent)
    own.filters["counts"] = lambda counts: ", ".join(f"{name} {count}" for name, count in counts.items())
    return own.get_template("card.md").render(card)
