"""Score models on a suite, on rows or on any lm-eval task, and save the results."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks import TaskManager
from transformers import set_seed

from cctuning.data import Encoder
from cctuning.data.chat import own_template
from cctuning.errors import UserError
from cctuning.evaluation.answer_language import answered_in
from cctuning.evaluation.models import THINKING_TOKENS, ConnectedLM, Journal, language_model
from cctuning.evaluation.saved_results import (
    JOURNAL_FILE,
    SAMPLES_FOLDER,
    answer_counts,
    claim,
    model_hash,
    new_record,
    sample_line,
    task_warnings,
    write_results,
    writing,
)
from cctuning.evaluation.suite_tasks import Item, load_suite
from cctuning.evaluation.suites import SUITES, trained_languages
from cctuning.evaluation.user_tasks import load_own_rows, load_tasks
from cctuning.files import write_jsonl
from cctuning.languages import ENGLISH, canonical, same
from cctuning.model.loading import load, to_accelerator
from cctuning.serving.answering import chat_notes, chat_of, encoder_of, reference_language, tokenizer_and_run
from cctuning.serving.stop_tokens import answer_end
from cctuning.settings import check_values, option

MODES = ("student", "bypass")


@dataclass
class Options:
    """What to score, and how: the options of `cctuning evaluate`, whose help describes them."""

    suite: str = option("source", choices=SUITES)
    languages: list[str] | None = None
    benchmarks: list[str] | None = None
    limit: int | None = option(None, least=1)
    data: str | None = None
    chat: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_tokens: int = option(THINKING_TOKENS, least=1)
    mode: str = option("student", "As the model will run; or without the connection's transform.", choices=MODES)
    dtype: str = "auto"
    seed: int = 0
    batch_size: int | None = option(None, least=1)
    trust_remote_code: bool = False
    rows: str | None = None
    tasks: list[str] | None = None
    include_path: str | None = None
    reference_language: str | None = option(None, "Of models of whose training nothing is known.")

    def __post_init__(self) -> None:
        check_values(Options, vars(self), "")
        if self.languages is not None:
            self.languages = [canonical(code, "--languages") for code in self.languages]

    def settings(self) -> dict[str, Any]:
        """The options that affect the figures. The data are compared by `Item.data_hash`."""
        names = ("suite", "languages", "benchmarks", "limit", "chat", "mode", "dtype", "seed")
        found = {name: getattr(self, name) for name in names} | {"local": self.data is not None}
        if self.chat_template_kwargs:
            found["chat_template_kwargs"] = self.chat_template_kwargs
        if self.thinking_tokens != THINKING_TOKENS:
            found["thinking_tokens"] = self.thinking_tokens
        if self.tasks:
            return found | {"suite": "tasks", "tasks": sorted(self.tasks)}
        return found | ({"suite": "rows"} if self.rows else {})


def evaluate_models(
    models: Sequence[tuple[str, str]], directory: Path, options: Options
) -> list[tuple[str, Path, dict[str, Any]]]:
    """Score models (name to path) on the same tasks; with several, results go into a subdirectory for each.
    Returns the name, directory and results of each."""
    options = _settled(models, options)
    directories = [directory / name if len(models) > 1 else directory for name, _ in models]
    for own in directories:
        claim(own, options.settings())  # before the first is scored, which may take hours
    done = []
    for (name, path), own in zip(models, directories, strict=True):
        done.append((name, own, evaluate(path, own, options)))
        gc.collect()  # the model is gone before the next is loaded
    return done


def evaluate(path: str, directory: Path, options: Options) -> dict[str, Any]:
    """Score one model: a run, a merged model, a LoRA, or any causal LM. A stopped run continues where it was. Returns
    the content of `results.json`."""
    options = _settled([(path, path)], options)
    tokenizer, run = tokenizer_and_run(path, options.trust_remote_code)
    record = claim(directory, options.settings())
    home = run.get("reference_language") or options.reference_language
    encoder = encoder_of(tokenizer, run, options.chat, options.chat_template_kwargs)
    items, notes = _load_items(options, home or ENGLISH, encoder)
    notes += chat_notes(run, encoder)
    if options.thinking_tokens != THINKING_TOKENS and not encoder.thinks:
        notes.append("thinking_tokens: no effect, because prompts do not let the model think before it answers.")
    for note in notes:
        logging.getLogger(__name__).warning(note)
    loaded = to_accelerator(load(path, dtype=options.dtype, trust_remote_code=options.trust_remote_code))
    weights = model_hash(loaded, options.mode)
    if record and record["model"]["fingerprint"] != weights:
        raise UserError(f"{directory}: holds results of another model ({record['model']['name']}); name another.")
    record = record or new_record(path, loaded, weights, options.settings())
    _check_data(items, record, options.limit, directory)
    record["model"]["reference_language"] = home
    record["notes"], record["planned"] = notes, [item.name for item in items]
    lm = language_model(loaded, options.mode, encoder)
    bypassed = options.mode == "bypass" and loaded.connected
    with writing(directory), bypassed.disable_adapter() if bypassed else nullcontext():
        (directory / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
        write_results(directory, record)
        thinking = options.thinking_tokens if encoder.thinks else 0
        journal = Journal(lm, directory / JOURNAL_FILE, options.batch_size, answer_end(encoder), thinking)
        for number, item in enumerate(items, 1):
            journal.label = f"[{number}/{len(items)}] {item.name}"
            if isinstance(lm, ConnectedLM):
                lm.in_reference_language = same(item.language, lm.connected.reference_language)
            if item.name not in record["tasks"]:
                score(item, journal, options, directory, record)
            notes += [note for note in task_warnings(item.name, record["tasks"][item.name]) if note not in notes]
        record["status"] = "finished"
        write_results(directory, record)
    journal.path.unlink(missing_ok=True)
    return record


def _settled(models: Sequence[tuple[str, str]], options: Options) -> Options:
    """`options` with what follows from the models: whether prompts are rendered with the chat template, the languages,
    and the reference language. Reads no weights."""
    runs: list[dict[str, Any]] = []
    chats, tokenizers = {}, {}
    for name, path in models:
        tokenizer, run = tokenizer_and_run(path, options.trust_remote_code)
        if options.chat and own_template(tokenizer) is None:
            raise UserError(f"{path}: --chat: its tokenizer has no chat template; leave the option out.")
        if options.mode == "bypass" and reference_language(path) is None:
            raise UserError(f"{path}: has no connection, which --bypass needs; leave the option out.")
        runs.append(run)
        tokenizers[name] = tokenizer
        chats[name] = chat_of(run, tokenizer) if options.chat is None else options.chat
    if len({*chats.values()}) > 1:
        told = ", ".join(f"{name} {'with' if chat else 'without'}" for name, chat in chats.items())
        raise UserError(f"prompts would be rendered with the chat template for some models only: {told}; use --chat.")
    chat = chats[models[0][0]]
    if chat and len(models) > 1:
        _check_templates(tokenizers, options.chat_template_kwargs)
    if options.suite == "current" and options.languages is None and not (options.rows or options.tasks):
        options = replace(options, languages=trained_languages(runs))
    homes = {run["reference_language"] for run in runs if run.get("reference_language")}
    home = homes.pop() if len(homes) == 1 else options.reference_language
    return replace(options, chat=chat, reference_language=home)


def _check_templates(tokenizers: Mapping[str, Any], arguments: Mapping[str, Any] | None) -> None:
    """Raise a `UserError` if the chat templates of models differ, since results on other prompts are not compared."""
    prompts = {name: encoder_of(one, {}, True, arguments).render("…") for name, one in tokenizers.items()}
    first, *others = prompts
    for name in others:
        if prompts[name] != prompts[first]:
            raise UserError(
                f"prompts would be rendered differently, so that results could not be compared: {prompts[first]!r} "
                f"by {first}, {prompts[name]!r} by {name}; score each with a separate command, or see "
                "--chat_template_kwargs."
            )


def _load_items(options: Options, reference: str, encoder: Encoder) -> tuple[list[Item], list[str]]:
    """The tasks, those that generate answers last, and notes on what is left out."""
    data = Path(options.data) if options.data else None
    if options.rows:
        items, notes = load_own_rows(options.rows, options.languages, reference, encoder)
    elif options.tasks:
        items, notes = load_tasks(options.tasks, data, options.languages, options.include_path)
    else:
        items, notes = load_suite(options.suite, options.languages, data, options.benchmarks, reference)
    return sorted(items, key=lambda item: item.generates), notes


def _check_data(items: list[Item], record: dict[str, Any], limit: int | None, directory: Path) -> None:
    """Raise a `UserError` if the data of a finished task are not those that it was scored on."""
    now = {item.name: item for item in items}
    for name, task in record["tasks"].items():
        before = task.get("data_hash")
        if name not in now or (before is not None and now[name].data_hash(limit) != before):
            raise UserError(
                f"{directory}: {name} was scored on other data than there are now; name another directory."
            )


def score(item: Item, lm: Journal, options: Options, directory: Path, record: dict[str, Any]) -> None:
    """Score one task and save its figures and samples."""
    before = lm.asked
    lm.cut.clear()
    done = _run(item, lm, options)
    main, _, chosen = item.metric.partition(",")
    found = done["groups" if item.grouped else "results"][item.name]
    figures = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    kept: list[dict[str, Any]] = []
    for task in item.tasks:
        own = [sample_line(one) for one in done["samples"][task.task_name] if one.get("filter", "none") == chosen]
        if item.grouped:  # each task numbers its items from 0
            own = [one | {"id": len(kept) + place, "task": task.task_name} for place, one in enumerate(own)]
        kept += own
    write_jsonl(directory / SAMPLES_FOLDER / f"{item.name}.jsonl", kept)
    record["tasks"][item.name] = {
        "benchmark": item.benchmark,
        "language": item.language,
        "version": item.version,
        "items": len(kept),
        "metric": main,
        "chance": item.chance,
        "metrics": _metrics(figures, chosen),
        "requests": lm.asked - before,
        "cut": len(lm.cut),
        **answer_counts(kept),
        "answered_in": answered_in(kept, item.language, record["model"].get("reference_language") or ENGLISH),
        "data_hash": item.data_hash(options.limit),
    }
    write_results(directory, record)


def _run(item: Item, lm: Journal, options: Options) -> dict[str, Any]:
    """Run one task as lm-eval's `simple_evaluate` does, without its slow list of the installed packages."""
    set_seed(options.seed)
    for task in item.tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=options.seed)
    built = TaskManager(include_defaults=False).load([item.task])
    done = lm_eval_evaluate(
        lm=lm,
        task_dict=built,
        limit=options.limit,
        log_samples=True,
        apply_chat_template=bool(options.chat) and not item.rendered,
        fewshot_as_multiturn=True,
    )
    assert done is not None  # None on other processes than the first
    return dict(done)


def _metrics(figures: dict[str, float], chosen: str) -> dict[str, dict[str, float | None]]:
    """`acc,none` and `acc_stderr,none` as `{"acc": {"value": …, "stderr": …}}`, for one filter."""
    return {
        key.partition(",")[0]: {"value": value, "stderr": figures.get(f"{key.partition(',')[0]}_stderr,{chosen}")}
        for key, value in figures.items()
        if key.endswith(f",{chosen}") and "_stderr" not in key
    }
