"""Load the models of runs one at a time, and measure their connections, activations and answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cctuning.analysis import (
    GateStatistics,
    LanguageBatch,
    LayerChoice,
    Similarity,
    TransformErrors,
    TransformShape,
    gate_statistics,
    language_batches,
    language_similarity,
    layer_choice,
    principal_plane,
    transform_errors,
    transform_shape,
)
from cctuning.analysis.observe import languages_of, spread
from cctuning.analysis.similarity import gather
from cctuning.connection import ConnectionConfig
from cctuning.data import Encoder, Source, encode_dataset, load_rows
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.loading import MODEL_FOLDER, Loaded, load, load_tokenizer
from cctuning.report.runs import Run
from cctuning.serving.answering import Answerer

IN_PLANE = 10  # prompts per language in the projection
ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Options:
    """How much to measure. `rows`: per language. `examples`: number of prompts that each model answers."""

    rows: int = 128
    batch_size: int = 16
    examples: int = 0
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows to measure on. `where`: their files. `held_out`: whether they were given for the report."""

    table: Any
    where: str
    held_out: bool


@dataclass(frozen=True)
class Plane:
    """Prompts and their reference prompts, pair by pair and language by language, at one layer on a principal plane.

    Attributes:
        explained: share of the variance of each axis.
    """

    layer: int
    explained: tuple[float, float]
    points: dict[str, list[tuple[float, float]]]
    references: dict[str, list[tuple[float, float]]]


@dataclass
class ModelAnalysis:
    """Measurements of one model; None for parts that it lacks.

    Attributes:
        lengths: median tokens of prompt, reference prompt and response, by language.
        left_out: origin and reason of rows that do not fit.
    """

    similarity: Similarity
    plane: Plane
    gate: GateStatistics | None = None
    choice: LayerChoice | None = None
    errors: TransformErrors | None = None
    shape: TransformShape | None = None
    lengths: dict[str, list[float]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """One prompt, and the answer of each model by name."""

    language: str
    prompt: Any
    reference: Any
    expected: str | None
    answers: dict[str, str]


@dataclass
class Findings:
    """Measurements by name of the run, and by name or path of the base."""

    rows: Rows
    runs: dict[str, ModelAnalysis] = field(default_factory=dict)
    bases: dict[str, ModelAnalysis] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)


def read_rows(runs: Sequence[Run], data: Source | None, limit: int) -> Rows:
    """Up to `limit` rows per language with a reference prompt, evenly spread, sorted by language.

    Args:
        data: None for the training rows of the first run.

    Raises:
        UserError: rows that cannot be read, or none with a reference prompt.
    """
    run = runs[0]
    sources = [data] if data is not None else run.options.get("data") or []
    if not sources:
        raise UserError(f"{run.path}/config.yaml names no rows; use --data.")
    named = [Source.from_dict(source, "data") for source in sources]
    if data is None:
        for source in named:
            source.bad_rows = "skip"  # training has reported them
    language = run.record["reference_language"]
    table, _ = load_rows(named, reference_language=language, require_reference=data is not None)
    places: dict[str, list[int]] = {}
    for place, (lang, reference) in enumerate(zip(table["lang"], table["reference"], strict=True)):
        if reference is not None:
            places.setdefault(lang, []).append(place)
    places.pop(language, None)
    chosen = [place for lang in sorted(places) for place in spread(places[lang], limit)]
    if not chosen:
        raise UserError(
            f"{', '.join(source.path for source in named)}: no row with a reference prompt in {language!r}; use "
            f"--data with rows that have a column prompt_{language}."
        )
    return Rows(table.select(chosen), ", ".join(source.path for source in named), data is not None)


def analyse(runs: Sequence[Run], rows: Rows, options: Options) -> Findings:
    """Measure the model of each run, and each base.

    Raises:
        UserError: a model that cannot be loaded, or no row that fits all runs.
    """
    rows, encoded, left_out = _fitting(runs, rows, options)
    found = Findings(rows)
    examples = _examples(rows, options.examples)
    answers: dict[str, list[str]] = {}
    bases: dict[str, Run] = {}
    for run in runs:
        bases.setdefault(run.base, run)
    work = [(run.base, run) for run in bases.values()] + [(str(run.path), run) for run in runs]
    for path, run in tqdm(work, desc="Analysing models", unit="model"):
        is_base = path == run.base
        loaded = load(path, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
        if torch.accelerator.is_available():
            cast(Any, loaded.connected or loaded.model).to(torch.accelerator.current_accelerator())
        if is_base:  # with the run's tokens and chat template
            loaded.tokenizer = load_tokenizer(
                str(run.path / MODEL_FOLDER), trust_remote_code=options.trust_remote_code
            )
        connected = loaded.connected or ConnectedModel.attach(loaded.model, ConnectionConfig(connection="none"))
        batches = language_batches(encoded[run.name], loaded.tokenizer.pad_token_id or 0, options.batch_size)
        model = _measure(connected.eval(), batches)
        model.lengths, model.left_out = _lengths(encoded[run.name]), left_out[run.name]
        if is_base:
            found.bases[path] = model
        else:
            found.runs[run.name] = model
        if examples:
            base = "base" if len(bases) == 1 else f"base {Path(run.base).name}"
            answers |= _answer(base if is_base else run.name, run, loaded, examples, options)
        del loaded, connected
        gc.collect()
    found.examples = [
        Example(
            row["lang"],
            row["prompt"],
            row["reference"],
            row["response"],
            {name: texts[place] for name, texts in answers.items()},
        )
        for place, row in enumerate(examples)
    ]
    return found


def _fitting(
    runs: Sequence[Run], rows: Rows, options: Options
) -> tuple[Rows, dict[str, Any], dict[str, list[tuple[str, str]]]]:
    """The rows that fit every run, the same encoded for each run, and the rows that do not fit each run."""
    encoded, left_out = {}, {}
    for run in runs:
        encoded[run.name], left_out[run.name] = encode_dataset(
            rows.table,
            Encoder(
                load_tokenizer(str(run.path / MODEL_FOLDER), trust_remote_code=options.trust_remote_code),
                max_length=run.options.get("max_length", 1024),
                max_reference_length=run.options.get("max_reference_length"),
                chat=bool(run.record.get("chat")),
            ),
            bad_rows="skip",
        )
    common = set.intersection(*(set(own["row"]) for own in encoded.values()))
    if not common:
        raise UserError(
            f"{rows.where}: no row fits every run; use shorter ones with --data, or report the runs separately."
        )

    def kept(table: Any) -> Any:
        return table.select([place for place, row in enumerate(table["row"]) if row in common])

    return replace(rows, table=kept(rows.table)), {name: kept(own) for name, own in encoded.items()}, left_out


def _lengths(encoded: Any) -> dict[str, list[float]]:
    """Median tokens of prompt, reference prompt and response, by language."""
    lengths: dict[str, list[tuple[int, int, int]]] = {}
    for row in encoded:
        response = sum(label != -100 for label in row["labels"])
        prompt, reference = len(row["input_ids"]) - response, len(row["reference_input_ids"])
        lengths.setdefault(row["lang"], []).append((prompt, reference, response))
    return {code: np.median(own, axis=0).tolist() for code, own in lengths.items()}


def _measure(connected: ConnectedModel, batches: list[LanguageBatch]) -> ModelAnalysis:
    found = ModelAnalysis(language_similarity(connected, batches), _plane(connected, batches))
    if connected.config.connection != "none":
        found.choice = layer_choice(connected, batches)
        found.gate = gate_statistics(connected, batches) if connected.decisions else None
        found.errors, found.shape = transform_errors(connected, batches), transform_shape(connected)
    return found


def _plane(connected: ConnectedModel, batches: list[LanguageBatch]) -> Plane:
    """The first prompts of each language, at the middle layer."""
    activations: dict[str, tuple[Tensor, Tensor]] = {}
    layer = 0
    for language in languages_of(batches):
        mine = [batch for batch in batches if batch.language == language]
        own, theirs = gather(connected, mine[: -(-IN_PLANE // len(mine[0].inputs["row"]))])
        layer = own.shape[1] // 2
        activations[language] = own[:IN_PLANE, layer], theirs[:IN_PLANE, layer]
    flat = principal_plane(torch.cat([side for pair in activations.values() for side in pair]))
    places = iter([(round(x, 4), round(y, 4)) for x, y in flat.points.tolist()])
    points, references = {}, {}
    for language, (own, _) in activations.items():
        points[language] = list(islice(places, len(own)))
        references[language] = list(islice(places, len(own)))
    return Plane(layer, (float(flat.explained[0]), float(flat.explained[1])), points, references)


def _examples(rows: Rows, wanted: int) -> list[dict[str, Any]]:
    """`wanted` rows, one language after the other, chosen by their position alone."""
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in rows.table if wanted else ():
        by_language.setdefault(row["lang"], []).append(row)
    turns = zip_longest(*by_language.values())
    return [row for turn in turns for row in turn if row is not None][:wanted]


def _answer(
    name: str, run: Run, loaded: Loaded, examples: list[dict[str, Any]], options: Options
) -> dict[str, list[str]]:
    """Answers to the examples by name of the model: as it runs, without its connection, and with the references."""
    prompts, references, languages = ([row[key] for row in examples] for key in ("prompt", "reference", "lang"))
    chat = bool(run.record.get("chat"))

    def ask(bypass: bool, given: list[Any] | None) -> list[str]:
        answerer = Answerer(
            loaded, chat=chat, bypass=bypass, batch_size=options.batch_size, max_new_tokens=ANSWER_TOKENS
        )
        return answerer(prompts, given, languages=languages)

    answers = {name: ask(False, None)}
    if loaded.connected is not None:
        if not run.connection.inert:
            answers[f"{name}, without its connection"] = ask(True, None)
        answers[f"{name}, with the reference prompt"] = ask(False, references)
    return answers
