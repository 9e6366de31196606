"""Score a model on a suite, task by task, into a directory that a stopped run goes on from.

DIR/results.json    every setting, version and seed, the model's fingerprint, and each finished task's figures
DIR/samples/*.jsonl one line an item: prompt, target, what the model said, its metrics
DIR/journal.jsonl   answers of the task that is running; removed when all are done
DIR/results.md      the table
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm
from transformers import set_seed

from cctuning.data import Encoder
from cctuning.data.chat import own_template
from cctuning.errors import UserError
from cctuning.evaluation.answer_language import answered_in
from cctuning.evaluation.lm_eval_tasks import named_items
from cctuning.evaluation.models import THINKING_TOKENS, AnsweringLM, ConnectedLM, Journal, writing
from cctuning.evaluation.own_rows import own_items, rows_hash
from cctuning.evaluation.reference_prompts import Parallels, with_parallels
from cctuning.evaluation.results_table import markdown
from cctuning.evaluation.samples import answers_of, said_alike, sample_line
from cctuning.evaluation.saved_results import model_hash
from cctuning.evaluation.suites import SUITES, Item, plan
from cctuning.files import write_atomically
from cctuning.languages import ENGLISH, canonical
from cctuning.model.loading import Loaded, load, resolve
from cctuning.model.serialization import CONFIG_FILE, read_config
from cctuning.model.sites import unwrap
from cctuning.serving.answering import chat_notes, chat_of, encoder_for, encoder_of, tokenizer_of
from cctuning.serving.stops import Thoughts, answer_end, stop_tokens

FORMAT = 1
RESULTS_FILE, SAMPLES_FOLDER, JOURNAL_FILE, TABLE_FILE = "results.json", "samples", "journal.jsonl", "results.md"
MODES = ("student", "bypass", "parallel")
PACKAGES = ("cc-tuning", "lm_eval", "torch", "transformers", "peft", "datasets")


@dataclass
class Options:
    """What is scored and how.

    Attributes:
        mode: `student` (as it will run), `bypass` (without the connection's transform), `parallel` (over the live
            connection, with the benchmark's own prompt in the reference language).
        rows: a user's own, in place of a suite's tasks.
        tasks: lm-eval's, by name, likewise. include_path: a directory with more of them.
        chat: render prompts with the chat template; None: as in training; where that is not known, if there is one.
        chat_template_kwargs: its arguments, where they are to be others than in training.
        thinking_tokens: room for thinking, where the model thinks before it answers.
    """

    suite: str = "source"
    languages: list[str] | None = None
    benchmarks: list[str] | None = None
    limit: int | None = None
    data: str | None = None
    chat: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_tokens: int = THINKING_TOKENS
    mode: str = "student"
    dtype: str = "auto"
    seed: int = 0
    batch_size: int | None = None
    trust_remote_code: bool = False
    rows: str | None = None
    tasks: list[str] | None = None
    include_path: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("suite", SUITES), ("mode", MODES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}.")
        if self.languages is not None:
            self.languages = [canonical(code, "--languages") for code in self.languages]
        for name in ("limit", "batch_size", "thinking_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """What decides the figures: all but where the data lie and how many rows run at once."""
        apart = ("data", "batch_size", "trust_remote_code", "rows", "tasks", "include_path")
        found = {key: value for key, value in asdict(self).items() if key not in apart}
        if not self.chat_template_kwargs:  # a model that thinks unasked has it in its template
            del found["chat_template_kwargs"]
        if self.thinking_tokens == THINKING_TOKENS:
            del found["thinking_tokens"]
        found["local"] = self.data is not None
        if self.tasks:
            return found | {"suite": "tasks", "tasks": sorted(self.tasks)}
        return found | ({"suite": "rows", "rows": rows_hash(self.rows)} if self.rows else {})


def evaluate(path: str, directory: Path, options: Options) -> dict[str, Any]:
    """Score `path` (a run, a fold, a LoRA, any causal LM) and return what results.json holds.

    Raises:
        UserError: bad options, data or model, or a directory that holds something else; what is done is kept.
    """
    tokenizer, run = tokenizer_of(path, options.trust_remote_code)
    if options.chat and own_template(tokenizer) is None:
        raise UserError(f"{path}: --chat: its tokenizer has no chat template; leave the option out.")
    options = replace(options, chat=chat_of(run, tokenizer) if options.chat is None else options.chat)
    record = _claim(directory, path, options)
    said = reference_language(path)
    language = said or ENGLISH
    encoder = encoder_for(tokenizer, bool(options.chat), options.chat_template_kwargs)
    if options.rows:
        items, notes = own_items(options.rows, options.languages, language, encoder)
    data = Path(options.data) if options.data else None
    if options.tasks:
        items, notes = named_items(options.tasks, data, options.languages, options.include_path)
    elif not options.rows:
        items, notes = plan(options.suite, options.languages, data, options.benchmarks, language)
    if options.mode == "parallel":
        items = with_parallels(items, notes, language)
    notes += chat_notes(run, encoder)
    for note in notes:
        logging.getLogger(__name__).warning(note)
    loaded = load(path, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if options.mode != "student" and loaded.connected is None:
        raise UserError(
            f"{path}: no connection in it (folded or plain), so nothing to bypass and no reference to use."
        )
    if torch.accelerator.is_available():
        module: Any = loaded.connected or loaded.model
        module.to(torch.accelerator.current_accelerator())
    mark = model_hash(loaded, options.mode)
    if record and record["model"]["fingerprint"] != mark:
        raise UserError(f"{directory}: holds results of another model ({record['model']['name']}); name another.")
    record = record or _new_record(path, loaded, mark, options)
    _check_data(items, record, directory)
    record["model"]["reference_language"] = said
    record["notes"], record["planned"] = notes, [item.name for item in items]
    encoder = encoder_of(loaded, options.chat, options.chat_template_kwargs)
    end_as_trained(loaded, encoder)
    parallels = Parallels(bool(options.chat), options.limit, language) if options.mode == "parallel" else None
    lm, reference = _model(loaded, options, parallels, encoder)
    (directory / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    _write(directory, record)
    journal = directory / JOURNAL_FILE
    bypass = options.mode == "bypass" and loaded.connected is not None
    with (
        loaded.connected.disable_adapter() if bypass and loaded.connected else nullcontext(),
        _progress(items, record, options) as bar,
    ):
        thinking = options.thinking_tokens if encoder.thinks else 0
        asked = Journal(lm, journal, options.batch_size, reference, bar, answer_end(encoder), thinking)
        for number, item in enumerate(items, 1):
            bar.set_description(f"[{number}/{len(items)}] {item.name}")
            if isinstance(lm, ConnectedLM):
                lm.apart = item.language == lm.connected.reference_language
            if parallels is not None:
                for note in parallels.add(item, asked):
                    logging.getLogger(__name__).warning(note)
                    notes.append(note)
            if item.name not in record["tasks"]:
                score(item, asked, options, directory, record)
            notes += [note for note in said_alike(item.name, record["tasks"][item.name]) if note not in notes]
    record["status"] = "finished"
    _write(directory, record)
    journal.unlink(missing_ok=True)
    return record


def reference_language(path: str) -> str | None:
    """The language that `path` borrows from, or its run names; None for a plain model. No weight is read.

    Raises:
        UserError: nothing that can be loaded is there.
    """
    where, run = resolve(path)
    folder = Path(where)
    return (read_config(folder) if (folder / CONFIG_FILE).is_file() else run).get("reference_language")


def _check_data(items: list[Item], record: dict[str, Any], directory: Path) -> None:
    """Raise `UserError` where a finished task's local file is another by now."""
    for item in items:
        before = record["tasks"].get(item.name, {}).get("data")
        if before and item.file is not None and rows_hash(str(item.file)) != before:
            raise UserError(f"{directory}: {item.name} was scored on another {item.file}; name another directory.")


def _progress(items: list[Item], record: dict[str, Any], options: Options) -> Any:
    """One bar for the whole run, in items; what an earlier run did is done, and says nothing of this one's speed."""
    sizes = {item.name: item.count(options.limit) for item in items}
    terminal = sys.stderr.isatty()
    return tqdm(
        total=sum(sizes.values()),
        initial=sum(size for name, size in sizes.items() if name in record["tasks"]),
        unit="item",
        smoothing=0,  # the mean speed: tasks differ, and the last one's says little of the next
        mininterval=0.5 if terminal else 60,  # a log file has no use for a line a second
        disable=False,  # lm-eval's own bars are off (TQDM_DISABLE); this one says what they would
    )


def score(item: Item, lm: Journal, options: Options, directory: Path, record: dict[str, Any]) -> None:
    """Run one task and put its figures and samples into the directory."""
    before = lm.asked
    done = _run(item, lm, options)
    main, _, chosen = item.metric.partition(",")
    found = done["groups" if item.grouped else "results"][item.name]
    figures = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    kept: list[dict[str, Any]] = []
    for task in item.tasks:
        own = [sample_line(one) for one in done["samples"][task.task_name] if one.get("filter", "none") == chosen]
        if item.grouped:  # each task counts its items from 0
            own = [one | {"id": len(kept) + place, "task": task.task_name} for place, one in enumerate(own)]
        kept += own
    path = directory / SAMPLES_FOLDER / f"{item.name}.jsonl"
    with writing(path):
        write_atomically(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept))
    record["tasks"][item.name] = {
        "benchmark": item.benchmark,
        "language": item.language,
        "version": item.version,
        "items": len(kept),
        "metric": main,
        "chance": item.chance,
        "metrics": _metrics(figures, chosen),
        "requests": lm.asked - before,
        **answers_of(kept),
        "answered_in": answered_in(kept, item.language, record["model"].get("reference_language") or ENGLISH),
        "data": None if item.file is None else rows_hash(str(item.file)),
    }
    _write(directory, record)


def _run(item: Item, lm: Journal, options: Options) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` does of this, without its survey of the machine's packages after every task,
    which takes seconds and prints an error of git's outside a repository."""
    set_seed(options.seed)
    for task in item.tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=options.seed)
    built = TaskManager(include_defaults=False).load([item.task])  # as it is; the whole index would take seconds
    done = lm_eval_evaluate(
        lm=lm,
        task_dict=built,
        limit=options.limit,
        log_samples=True,
        apply_chat_template=bool(options.chat) and not item.rendered,
        fewshot_as_multiturn=True,
    )
    assert done is not None  # only one process among several gets nothing
    return dict(done)


def _metrics(figures: dict[str, float], chosen: str) -> dict[str, dict[str, float | None]]:
    """`acc,none` and `acc_stderr,none` as `{"acc": {"value": …, "stderr": …}}`, for the filter that counts; one item
    has no standard error."""
    return {
        key.partition(",")[0]: {"value": value, "stderr": figures.get(f"{key.partition(',')[0]}_stderr,{chosen}")}
        for key, value in figures.items()
        if key.endswith(f",{chosen}") and "_stderr" not in key
    }


def end_as_trained(loaded: Loaded, encoder: Encoder) -> None:
    """Have the model end its answers where the template ends a turn: a base's own config may know less."""
    if encoder.chat:
        stops = stop_tokens(encoder, unwrap(loaded.model))
        for model in (loaded.model, unwrap(loaded.model)):
            if stops and model.generation_config is not None:
                model.generation_config.eos_token_id = stops


def _model(loaded: Loaded, options: Options, parallels: Parallels | None, encoder: Encoder) -> tuple[Any, Any]:
    connected = loaded.connected
    how: dict[str, Any] = {"chat": encoder.chat, "thoughts": Thoughts.of(encoder)}
    if loaded.tokenizer.pad_token_id is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token  # masked out: any id will do
    plain = connected is None or options.mode == "bypass" or (options.mode == "student" and connected.config.mergeable)
    if connected is not None and not plain:
        lm = ConnectedLM(connected, loaded.tokenizer, **how)
        lm.reference = parallels
        return lm, lm.reference
    return AnsweringLM(loaded.model, loaded.tokenizer, **how), None


def _claim(directory: Path, path: str, options: Options) -> dict[str, Any] | None:
    """What an earlier run left, or None for a new directory.

    Raises:
        UserError: it is not a directory of results, or of other settings.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output {directory}: a file; name a directory.")
    file = directory / RESULTS_FILE
    if not file.is_file():
        ours = (f".{RESULTS_FILE}.partial", SAMPLES_FOLDER)  # of a run that could not write its first file
        if directory.is_dir() and any(one.name not in ours for one in directory.iterdir()):
            raise UserError(f"--output {directory}: not empty, and no {RESULTS_FILE} in it; name another directory.")
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        before, form = record["settings"], record["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); name another directory, or remove this one.") from error
    if form != FORMAT:
        raise UserError(f"{file}: format {form}, and this version writes {FORMAT}; name another directory.")
    now = json.loads(json.dumps(options.settings()))
    other = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if other:
        told = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in other)
        raise UserError(f"--output {directory}: holds results of other settings: {told}; name another directory.")
    return record


def _new_record(path: str, loaded: Loaded, mark: str, options: Options) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "status": "stopped",  # until it is finished
        "model": {
            "name": path,
            "fingerprint": mark,
            "dtype": str(loaded.model.dtype),
            "training_seed": loaded.run.get("seed"),
            "group": None,
        },
        "settings": options.settings(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(loaded.model.device),
        "tasks": {},
    }


def _write(directory: Path, record: dict[str, Any]) -> None:
    for name, text in (
        (RESULTS_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        (TABLE_FILE, markdown(record)),
    ):
        with writing(directory / name):
            write_atomically(directory / name, text)
