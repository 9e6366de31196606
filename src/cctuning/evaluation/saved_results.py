"""Read the directories that `cctuning evaluate` wrote, and check that their results can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cctuning.errors import UserError
from cctuning.model.loading import Loaded

FORMAT = 1  # of results.json
_AGAIN = "score the model again with `cctuning evaluate` into a new directory"


@dataclass(frozen=True)
class ScoredTask:
    """A finished task. `items`: id to document hash, prompt hash and value of the main metric."""

    about: dict[str, Any]
    items: dict[int, tuple[str, str, float]]

    @property
    def benchmark(self) -> str:
        return str(self.about["benchmark"])

    @property
    def language(self) -> str:
        return str(self.about["language"])


@dataclass(frozen=True)
class ScoredRun:
    """The results of one model. `record`: the content of results.json."""

    system: str
    path: Path
    record: dict[str, Any]
    tasks: dict[str, ScoredTask]


def parse_named(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Split `NAME=PATH` arguments; a plain path is named after its last part.

    Raises:
        UserError: an empty name or path, or two plain paths with the same name.
    """
    found: list[tuple[str, str]] = []
    plain: dict[str, str] = {}
    given: set[str] = set()
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or Path(argument).is_dir():  # a directory may have "=" in its name
            name, path = Path(argument).resolve().name, argument
            if name in plain:
                raise UserError(
                    f"{plain[name]}, {argument}: both would be called {name!r}; give them different names "
                    f"(A={argument}), or the same if they are seeds of one system "
                    f"({name}={plain[name]} {name}={argument})."
                )
            plain[name] = argument
        else:
            given.add(name)
        if not name or not path:
            raise UserError(f"{argument!r}: expected DIR or NAME=DIR.")
        found.append((name, path))
    for name in sorted(given & {*plain}):
        raise UserError(f"{plain[name]}: {name!r} is given as another's name; write {name}={plain[name]} if meant.")
    return found


def parse_runs(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """As `parse_named`, for directories. Several with one name are training seeds of one system."""
    return [(name, Path(path)) for name, path in parse_named(arguments)]


def read_run(system: str, path: Path) -> ScoredRun:
    """Read a directory of finished results.

    Raises:
        UserError: results that are missing, damaged, unfinished or of another version.
    """
    file = path / "results.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a directory that `cctuning evaluate` wrote.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}); {_AGAIN}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {_AGAIN}.") from error
    if not isinstance(record, dict) or "format" not in record:
        raise UserError(f"{file}: not results of `cctuning evaluate` (no `format`); name another directory.")
    if record["format"] != FORMAT:
        raise UserError(f"{file}: format {record['format']}, and this version reads {FORMAT}; {_AGAIN}.")
    for key in ("model", "settings", "tasks"):
        if not isinstance(record.get(key), dict):
            raise UserError(f"{file}: `{key}` is missing or not a mapping; {_AGAIN}.")
    if record.get("status") != "finished":
        lacking = [name for name in record.get("planned") or [] if name not in record["tasks"]]
        told = f", without {', '.join(lacking)}" if lacking else ""
        raise UserError(f"{file}: not finished{told}; give the same `cctuning evaluate` command again to continue.")
    tasks = {name: _read_task(path, name, about) for name, about in record["tasks"].items()}
    return ScoredRun(system, path, record, tasks)


def _read_task(path: Path, name: str, about: Any) -> ScoredTask:
    for key in ("benchmark", "language", "version", "items", "metric"):
        if not isinstance(about, dict) or key not in about:
            raise UserError(f"{path / 'results.json'}: task {name} has no `{key}`; {_AGAIN}.")
    file = path / "samples" / f"{name}.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file, but results.json has the task; {_AGAIN}.")
    items: dict[int, tuple[str, str, float]] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                item_id, item = _read_item(f"{file}, line {number}", line, about["metric"])
                if item_id in items:
                    raise UserError(f"{file}, line {number}: id {item_id} a second time; {_AGAIN}.")
                items[item_id] = item
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason}); {_AGAIN}.") from error
    if not items or len(items) != about["items"]:
        raise UserError(f"{file}: {len(items)} items, and results.json counts {about['items']}; {_AGAIN}.")
    return ScoredTask(about, items)


def _read_item(where: str, line: str, metric: str) -> tuple[int, tuple[str, str, float]]:
    try:
        sample = json.loads(line)
        key, item_hash, prompt_hash, metrics = (sample[name] for name in ("id", "hash", "prompt_hash", "metrics"))
    except (ValueError, KeyError, TypeError) as error:
        what = f"no `{error.args[0]}`" if isinstance(error, KeyError) else "not a JSON mapping"
        raise UserError(f"{where}: {what}; {_AGAIN}.") from error
    value = metrics.get(metric) if isinstance(metrics, dict) else None
    if type(key) is not int:
        raise UserError(f"{where}: id {key!r} is not a whole number; {_AGAIN}.")
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:  # NaN fails too
        raise UserError(f"{where}: metric {metric}: expected a number from 0 to 1, got {value!r}; {_AGAIN}.")
    return key, (str(item_hash), str(prompt_hash), float(value))


def check_seeds(systems: Mapping[str, Sequence[ScoredRun]]) -> None:
    """Raise a `UserError` if the seeds of a system differ in mode, or if one of them is given twice."""
    for name, members in systems.items():
        for place, run in enumerate(members):
            for other in members[:place]:
                modes = [one.record["settings"].get("mode") for one in (other, run)]
                if modes[0] != modes[1]:
                    raise UserError(
                        f"{name}: {other.path} has mode {modes[0]} and {run.path} has {modes[1]}; seeds of one system "
                        "need the same mode: give them different names."
                    )
                weights = run.record["model"].get("fingerprint")
                same = weights is not None and weights == other.record["model"].get("fingerprint")
                if same or run.path.resolve() == other.path.resolve():
                    raise UserError(f"{name}: {other.path} and {run.path} hold the same weights; give each seed once.")


def common_tasks(runs: Sequence[ScoredRun], notes: list[str]) -> list[str]:
    """The tasks that all runs have; notes name the others."""
    common = [name for name in runs[0].tasks if all(name in run.tasks for run in runs)]
    if not common:
        told = "; ".join(f"{run.path}: {', '.join(run.tasks) or 'none'}" for run in runs)
        raise UserError(f"the runs have no task in common ({told}); score them on the same suite and languages.")
    for name in dict.fromkeys(name for run in runs for name in run.tasks if name not in common):
        lacking = ", ".join(str(run.path) for run in runs if name not in run.tasks)
        notes.append(f"task {name} left out: not in {lacking}.")
    return common


def check_same(runs: Sequence[ScoredRun], tasks: Sequence[str]) -> None:
    """Raise a `UserError` if runs were scored on other items, prompts, task versions, metrics or chat settings."""
    first = runs[0]
    for run in runs[1:]:
        chats = [bool(one.record["settings"].get("chat")) for one in (first, run)]
        if chats[0] != chats[1]:
            raise UserError(
                f"chat setting differs: {chats[0]} in {first.path}, {chats[1]} in {run.path}; "
                "score both with --chat or both without."
            )
        for name in tasks:
            _check_task(name, first, run)


def _check_task(name: str, first: ScoredRun, run: ScoredRun) -> None:
    one, other = first.tasks[name], run.tasks[name]
    for key in ("version", "metric", "benchmark", "language"):
        if one.about[key] != other.about[key]:
            told = "main metric" if key == "metric" else key
            raise UserError(
                f"task {name}: {told} differs: {one.about[key]} in {first.path}, {other.about[key]} in {run.path}; "
                "score both with the same version of cctuning and lm-eval."
            )
    apart = sorted(one.items.keys() ^ other.items.keys())
    if apart:
        raise UserError(
            f"task {name}: items differ: {len(one.items)} in {first.path}, {len(other.items)} in {run.path}; id "
            f"{apart[0]} is in one only; score both with the same --limit and data."
        )
    for item_id, (item_hash, prompt_hash, _) in one.items.items():
        if item_hash != other.items[item_id][0]:
            raise UserError(
                f"task {name}: items differ: id {item_id} is another document in {first.path} than in {run.path}; "
                "score both on the same data."
            )
        if prompt_hash != other.items[item_id][1]:
            raise UserError(
                f"task {name}: prompts differ: id {item_id} has another prompt in {first.path} than in {run.path}; "
                "score both with the same settings and chat template."
            )


def model_hash(loaded: Loaded, mode: str = "student") -> str:
    """A hash of all weights (with those of the connection), the tokenizer's vocabulary and its chat template."""
    digest = hashlib.blake2b(digest_size=16)
    module = loaded.model if loaded.connected is None else loaded.connected
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().contiguous().cpu()
        digest.update(name.encode() + str(plain.dtype).encode() + str(tuple(plain.shape)).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    digest.update(json.dumps(loaded.tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(str(loaded.tokenizer.chat_template).encode() + mode.encode())
    return digest.hexdigest()
