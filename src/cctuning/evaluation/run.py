"""Score a model on a suite, task by task, into a directory that a stopped run goes on from.

DIR/results.json    every setting, version and seed, the model's fingerprint, and each finished task's figures
DIR/samples/*.jsonl one line an item: prompt, target, what the model said, its metrics
DIR/journal.jsonl   answers of the task that is running; removed when all are done
DIR/results.md      the table
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm
from transformers import set_seed

from cctuning.errors import UserError
from cctuning.evaluation.models import ConnectedLM, Journal, writing
from cctuning.evaluation.own import own_items, rows_fingerprint
from cctuning.evaluation.parallels import Parallels, with_parallels
from cctuning.evaluation.suites import SUITES, Item, plan
from cctuning.evaluation.table import markdown
from cctuning.languages import ENGLISH
from cctuning.model.adapter import CONFIG_FILE, read_config, write_atomically
from cctuning.model.loading import Loaded, load, resolve

FORMAT = 1
RESULTS_FILE, SAMPLES_FOLDER, JOURNAL_FILE, TABLE_FILE = "results.json", "samples", "journal.jsonl", "results.md"
MODES = ("student", "bypass", "parallel")
PACKAGES = ("cc-tuning", "lm_eval", "torch", "transformers", "peft", "datasets")


@dataclass
class Options:
    """What is scored and how. `mode`: `student` (as it will run), `bypass` (without the connection's transform),
    `parallel` (over the live connection, with the benchmark's own prompt in the reference language). `rows`: a user's
    own, in place of a suite's."""

    suite: str = "source"
    languages: list[str] | None = None
    benchmarks: list[str] | None = None
    limit: int | None = None
    data: str | None = None
    chat: bool = False
    mode: str = "student"
    dtype: str = "auto"
    seed: int = 0
    batch_size: int | None = None
    trust_remote_code: bool = False
    rows: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("suite", SUITES), ("mode", MODES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}.")
        for name in ("limit", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """What decides the figures: all but where the data lie and how many rows run at once."""
        apart = ("data", "batch_size", "trust_remote_code", "rows")
        found = {key: value for key, value in asdict(self).items() if key not in apart}
        found["local"] = self.data is not None
        return found | ({"suite": "rows", "rows": rows_fingerprint(self.rows)} if self.rows else {})


def evaluate(path: str, directory: Path, options: Options) -> dict[str, Any]:
    """Score `path` (a run, a fold, a LoRA, any causal LM) and return what results.json holds.

    Raises:
        UserError: bad options, data or model, or a directory that holds something else; what is done is kept.
    """
    record = _claim(directory, path, options)
    said = reference_language(path)
    language = said or ENGLISH
    if options.rows:
        items, notes = own_items(options.rows, options.languages, language)
    else:
        data = Path(options.data) if options.data else None
        items, notes = plan(options.suite, options.languages, data, options.benchmarks, language)
    if options.mode == "parallel":
        items = with_parallels(items, notes, language)
    for note in notes:
        logging.getLogger(__name__).warning(note)
    loaded = load(path, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if options.mode != "student" and loaded.connected is None:
        raise UserError(
            f"{path}: no connection in it (folded or plain), so nothing to bypass and no reference to use."
        )
    if options.chat and loaded.tokenizer.chat_template is None:
        raise UserError(f"{path}: --chat: its tokenizer has no chat template; leave the option out.")
    if torch.accelerator.is_available():
        module: Any = loaded.connected or loaded.model
        module.to(torch.accelerator.current_accelerator())
    mark = fingerprint(loaded, options.mode)
    if record and record["model"]["fingerprint"] != mark:
        raise UserError(f"{directory}: holds results of another model ({record['model']['name']}); name another.")
    record = record or _new_record(path, loaded, mark, options)
    _check_data(items, record, directory)
    record["model"]["reference_language"] = said
    record["notes"], record["planned"] = notes, [item.name for item in items]
    parallels = Parallels(options.chat, options.limit, language) if options.mode == "parallel" else None
    lm, reference = _model(loaded, options, parallels)
    (directory / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    _write(directory, record)
    journal = directory / JOURNAL_FILE
    bypass = options.mode == "bypass" and loaded.connected is not None
    with (
        loaded.connected.disable_adapter() if bypass and loaded.connected else nullcontext(),
        _progress(items, record, options) as bar,
    ):
        asked = Journal(lm, journal, options.batch_size, reference, bar)
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
        if before and item.file is not None and rows_fingerprint(str(item.file)) != before:
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
        "data": None if item.file is None else rows_fingerprint(str(item.file)),
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
        apply_chat_template=options.chat,
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


def sample_line(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one item, for a person to read and for `compare` to pair."""
    arguments = list(sample["arguments"].values()) if isinstance(sample["arguments"], dict) else sample["arguments"]
    texts = [list(one.values()) if isinstance(one, dict) else list(one) for one in arguments]
    likelihoods = len(texts) > 1 or not isinstance(texts[0][1], dict)
    response: Any
    if likelihoods:
        found = [one[0] if isinstance(one, (list, tuple)) else one for one in sample["filtered_resps"]]
        response = [{"choice": text[1], "loglikelihood": float(one)} for text, one in zip(texts, found, strict=True)]
    else:  # a filter may keep a number out of a sentence, or white space off it
        response = {"said": sample["resps"][0][0], "scored": sample["filtered_resps"][0]}
    metrics = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample.get(name), (int, float))}
    return {
        "id": sample["doc_id"],
        "hash": sample["doc_hash"],
        "prompt": texts[0][0],
        "prompt_hash": hashlib.sha256(json.dumps(texts, ensure_ascii=False, default=str).encode()).hexdigest(),
        "target": sample["target"],
        "response": response,
        "metrics": metrics,
    }


def _model(loaded: Loaded, options: Options, parallels: Parallels | None) -> tuple[Any, Any]:
    connected = loaded.connected
    if loaded.tokenizer.pad_token_id is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token  # masked out: any id will do
    plain = connected is None or options.mode == "bypass" or (options.mode == "student" and connected.config.foldable)
    if connected is not None and not plain:
        lm = ConnectedLM(connected, loaded.tokenizer)
        lm.reference = parallels
        return lm, lm.reference
    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1), None


def fingerprint(loaded: Loaded, mode: str = "student") -> str:
    """A hash of every weight (the connection's too), the tokenizer's vocabulary and its chat template."""
    digest = hashlib.blake2b(digest_size=16)
    module = loaded.model if loaded.connected is None else loaded.connected
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().contiguous().cpu()
        digest.update(name.encode() + str(plain.dtype).encode() + str(tuple(plain.shape)).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    digest.update(json.dumps(loaded.tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(str(loaded.tokenizer.chat_template).encode() + mode.encode())
    return digest.hexdigest()


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
