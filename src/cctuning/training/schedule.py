"""The batches of a run: which rows are in which, decided by seed and epoch alone.

A run has one table of rows: the answered rows, then the parallel rows. In a batch each answered row is followed by its
parallel rows. Parallel rows alone may come first (`align_first`), as the beginning of the first epoch. Without
answered rows (a language pack) an epoch is a round of the mixture of languages.

transformers draws the order of `group_by_length` from torch's global generator, which dropout, data workers and
evaluation also draw from, so a resumed epoch would repeat some rows and miss others. With several processes,
accelerate's `skip_first_batches` hides the sampler from `set_epoch`, so a resumed epoch would be shuffled like the
first. So the trainer sets the epoch itself, and evaluation restores the generators (`metrics.undisturbed`).

accelerate also completes an epoch's last batches with rows from its beginning, so that every process has as many.
Those rows would be trained on twice, and a run would depend on the number of its processes. So a schedule makes the
batches of each process. If no row is left for a process, it gets a row that trains nothing (`filler`), the one after
the table's last, because it has to take part in the collectives.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from cctuning.data.text import normalise
from cctuning.model.packing import best_fit

HELD, HELD_SHARE, LEAST = 32, 0.05, 100  # pairs of a language held out: at most, of its pairs, of so many at least
NAMED = 3  # pairs that are evaluated on, named in a note
KEPT = 1 << 25  # numbers of the rounds of a mixture that are kept in memory
Round = list[list[int]]  # a batch for each process; an empty one is a filler


class Mixture:
    """An endless order of parallel rows in which each language has its share.

    A language with n rows has a share proportional to n^(1 / temperature) (XLM-R, arXiv 1911.02116, section 3): 1 is
    by size, more raises small languages. Within a language every row comes once before any is repeated.
    """

    def __init__(self, languages: Sequence[str], temperature: float, seed: int) -> None:
        """`languages` has the language of each row."""
        self.seed = seed
        self.languages = sorted(set(languages))
        named = np.asarray(languages)
        self._rows = [np.flatnonzero(named == code) for code in self.languages]
        sizes = np.array([len(rows) for rows in self._rows], dtype=float)
        shares = sizes ** (1.0 / temperature)
        self._quota = np.maximum(1, np.round(shares / shares.sum() * len(named))).astype(int)
        # The rows beside shuffled answered rows come from all rounds of an epoch, in no order.
        self.round = lru_cache(max(4, KEPT // len(self)))(self._round)

    def __len__(self) -> int:
        """Rows of a round."""
        return int(self._quota.sum())

    def drawn(self, count: int) -> dict[str, int]:
        """Language -> about how many of `count` rows are in it."""
        shares = self._quota / len(self)
        return {code: round(count * float(share)) for code, share in zip(self.languages, shares, strict=True)}

    def _round(self, number: int) -> Any:
        """Row numbers (M,) of the `number`-th round, of each language its share."""
        chosen = []
        for language, (rows, quota) in enumerate(zip(self._rows, self._quota, strict=True)):
            places = np.arange(number * quota, (number + 1) * quota)
            for again in np.unique(places // len(rows)):
                order = np.random.default_rng([self.seed, language, int(again)]).permutation(len(rows))
                chosen.append(rows[order[places[places // len(rows) == again] % len(rows)]])
        return np.random.default_rng([self.seed, 1 << 31, number]).permutation(np.concatenate(chosen))

    def rows(self, start: int, count: int) -> list[int]:
        """`count` row numbers from place `start` of the order."""
        return [int(self.round(place // len(self))[place % len(self)]) for place in range(start, start + count)]


class Schedule(BatchRebalanceSampler):
    """Batches of this process, as numbers of rows in the run's table.

    transformers and accelerate leave the batches of a `BatchRebalanceSampler` as they are.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        *,
        strategy: str = "random",
        capacity: int = 0,
        mixture: Mixture | None = None,
        answered: int = 0,
        beside: int = 0,
        first: int = 0,
        dp_size: int = 1,
        grad_accum: int = 1,
        **options: Any,
    ) -> None:
        """
        Args:
            lengths: tokens of each row of the table.
            batch: answered rows of a batch; with `capacity`, bins of so many tokens that whole rows fill, best-fit
                decreasing.
            strategy: `random`, `group_by_length` or `sequential`; not with `capacity`.
            mixture: of the parallel rows. answered: number of answered rows, all if there is no mixture; with 0, an
                epoch is a round of the mixture.
            beside: parallel rows with each answered row.
            first: optimizer steps on parallel rows alone.
            options: `rank`, `seed` and `drop_last` of the parent.
        """
        options |= {"dp_size": dp_size, "grad_accum": grad_accum}
        super().__init__(list(lengths), batch * dp_size * grad_accum, **options)
        self.batch, self.strategy, self.capacity = batch, strategy, capacity
        self.mixture, self.answered = mixture, answered if mixture is not None else len(lengths)
        self.beside, self.first = beside if self.answered else 0, first
        self.alone, self._more = batch, 0  # parallel rows of a batch alone; tokens that come with an answered row
        if capacity and mixture is not None:
            pair = float(np.asarray(self.lengths)[self.answered + mixture.round(0)].mean())
            self.alone, self._more = max(1, int(batch * capacity / pair)), round(self.beside * pair)
        self._made: dict[int, list[Round]] = {}
        self._bins = 0  # of an epoch, once known
        self._length = len(self._shuffled(0))

    def __len__(self) -> int:
        """Batches of an epoch, without those of `first`."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        for batches in self._rounds(self.epoch):
            yield self._with_parallel(self.epoch, batches[self.rank]) or [len(self.lengths)]

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps, without those of `first`."""
        return max(1, math.ceil(self._length / self.grad_accum))

    def drawn(self, epochs: float) -> dict[str, int]:
        """Language -> about how many parallel rows are read in so many epochs and in the steps before them."""
        if self.mixture is None:
            return {}
        each = self.answered * self.beside if self.answered else len(self.mixture)
        return self.mixture.drawn(round(epochs * each) + self._alone_in_all)

    def rows_read(self, steps: int) -> Sequence[int]:
        """The rows of the table that the first `steps` optimizer steps read, in all processes; all, if most."""
        found: set[int] = set()
        epoch = 0
        while steps > 0:
            rounds = self._rounds(epoch)[: steps * self.grad_accum]
            for batches in rounds:
                found.update(row for batch in batches for row in self._with_parallel(epoch, batch))
                if 2 * len(found) > len(self.lengths):
                    return range(len(self.lengths))
            steps -= max(1, math.ceil(len(rounds) / self.grad_accum))
            epoch += 1
        return sorted(found)

    def _rounds(self, epoch: int) -> list[Round]:
        """The batches of an epoch and of all processes, without the parallel rows beside answered ones."""
        if epoch not in self._made:
            self._made = {epoch: self._shuffled(epoch)}
            if epoch == 0 and self.mixture is not None:
                rows = [self.answered + row for row in self.mixture.rows(0, self._alone_in_all)]
                self._made[epoch] = _parts(_parts(rows, self.alone), self.dp_size) + self._made[epoch]
        return self._made[epoch]

    @property
    def _alone_in_all(self) -> int:
        return self.first * self.grad_accum * self.dp_size * self.alone

    def _with_parallel(self, epoch: int, rows: list[int]) -> list[int]:
        if self.mixture is None or not self.beside:
            return rows
        found = []
        for row in rows:
            found.append(row)
            if row < self.answered:
                place = self._alone_in_all + (epoch * self.answered + row) * self.beside
                found += [self.answered + other for other in self.mixture.rows(place, self.beside)]
        return found

    def _shuffled(self, epoch: int) -> list[Round]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        rows = list(range(self.answered))
        if not rows and self.mixture is not None:
            rows = self.mixture.round(epoch).tolist()
        lengths = [self.lengths[row] + self._more for row in rows]
        if self.strategy == "group_by_length" and not self.capacity:
            order = get_length_grouped_indices(lengths, self.effective_batch_size, generator=generator)
        elif self.strategy == "sequential":
            order = list(range(len(rows)))
        else:
            order = torch.randperm(len(rows), generator=generator).tolist()
        if self.capacity:
            return self._packed([rows[place] for place in order], [lengths[place] for place in order], generator)
        batches = _parts([rows[place] for place in order], self.batch)
        if self.drop_last:
            whole = [batch for batch in batches if len(batch) == self.batch]
            batches = whole[: len(whole) // self.dp_size * self.dp_size]
        return [one + [[]] * (self.dp_size - len(one)) for one in _parts(batches, self.dp_size)]

    def _packed(self, rows: list[int], lengths: list[int], generator: torch.Generator) -> list[Round]:
        packed = best_fit(lengths, self.capacity)
        self._bins = self._bins or len(packed)
        packed = _as_many(packed, self._bins, lengths)  # rounds of a mixture differ
        bins = [[rows[place] for place in packed[one]] for one in torch.randperm(len(packed), generator=generator)]
        rounds, step = [], self.effective_batch_size
        for dealt in _parts(bins, step):
            if self.drop_last and len(dealt) < step:
                break
            slots = math.ceil(len(dealt) * self.grad_accum / step)
            batches = [
                [row for one in dealt[number :: slots * self.dp_size] for row in one]
                for number in range(slots * self.dp_size)
            ]
            rounds += _parts(batches, self.dp_size)
        return rounds


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _as_many(bins: list[list[int]], count: int, lengths: Sequence[int]) -> list[list[int]]:
    """`bins` of places of `lengths` as `count` bins: the emptiest are spread over others, or the fullest halved."""
    if len(bins) > count:
        bins = sorted(bins, key=lambda one: sum(lengths[place] for place in one))
        spread, bins = bins[:-count], bins[-count:]
        for number, place in enumerate(place for one in spread for place in one):
            bins[number % count].append(place)
    while len(bins) < count:
        fullest = bins.pop(max(range(len(bins)), key=lambda number: len(bins[number])))
        bins += [fullest[::2], fullest[1::2]]
    return bins


def filler(table: Dataset) -> Dataset:
    """The row that trains nothing, with the columns of `table`."""
    row: dict[str, Any] = {"input_ids": [0], "labels": [-100], "text": [0, 1], "row": -1, "lang": ""}
    row |= {"reference_input_ids": [], "reference_text": [], "reference_row": -1}
    return Dataset.from_list([{name: row[name] for name in table.column_names}], features=table.features)


# -- parallel text as rows -------------------------------------------------------------------------------------------


def as_rows(pairs: Dataset, language: str) -> Dataset:
    """Pairs (columns `prompt`, `reference`, `lang`, `origin`) as rows without a response, and each distinct reference
    as a row that is its own reference: it keeps the reference language where it was. `language` is that language."""
    met: dict[str, int] = {}
    for number, value in enumerate(pairs["reference"]):
        if value is not None:  # a pair in the reference language is its own reference
            met.setdefault(str(value), number)
    own = pairs.select(sorted(met.values()))
    own = own.remove_columns(["prompt", "lang"]).add_column("prompt", own["reference"])
    own = own.add_column("lang", [language] * len(own)).cast(pairs.features)
    return concatenate_datasets([pairs, own])


def held_out(pairs: Dataset, language: str) -> list[int]:
    """Places of the pairs that are kept out of training, to measure alignment on text that was not trained on.

    Up to HELD pairs of each language, at most HELD_SHARE of its pairs, evenly spaced; none of a language with fewer
    than LEAST pairs, and none whose text is also in another pair. The choice depends on the pairs alone.
    """
    places = defaultdict(list)
    for place, lang in enumerate(pairs["lang"]):
        places[lang].append(place)
    chosen = []
    for lang, own in places.items():
        if lang != language and len(own) >= LEAST:
            count = min(HELD, int(HELD_SHARE * len(own)))
            chosen += [own[place] for place in np.linspace(0, len(own) - 1, count).astype(int)]
    texts = [_asked(text) for text in pairs.select(chosen)["prompt"]]
    times = Counter(dict.fromkeys(texts, 0))
    times.update(text for text in map(_asked, pairs["prompt"]) if text in times) if chosen else None
    return sorted(place for place, text in zip(chosen, texts, strict=True) if times[text] == 1)


def shared_with(evaluated: Dataset, pairs: Dataset) -> list[str]:
    """A note if parallel text contains prompts of evaluation rows, or their reference prompts.

    Args:
        evaluated, pairs: columns `prompt`, `reference` (of `evaluated`, optional) and `origin`.
    """
    asked: dict[str, str] = {}  # text to the origin of its row
    for name in ("reference", "prompt"):
        if name in evaluated.column_names:
            rows = zip(evaluated[name], evaluated["origin"], strict=True)
            asked |= {_asked(text): origin for text, origin in rows if text}
    shared = []
    for origin, *sides in zip(pairs["origin"], pairs["prompt"], pairs["reference"], strict=True):
        found = [asked[key] for key in map(_asked, filter(None, sides)) if key in asked]
        shared += [f"{origin} ({found[0]})"] if found else []
    if not shared:
        return []
    return [
        f"{len(shared)} pairs of the parallel text are prompts of the evaluation rows; remove them from one. The "
        f"first, with the evaluation row: {', '.join(shared[:NAMED])}."
    ]


def _asked(prompt: Any) -> str:
    """A text, or the last turn of messages: what is before it may be a system prompt that all rows share."""
    return normalise(prompt if isinstance(prompt, str) else prompt[-1]["content"])
