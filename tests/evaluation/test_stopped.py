"""A run that stops, by itself or for a full disk, goes on where it was."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from cctuning import files
from cctuning.cli import main
from cctuning.errors import UserError
from cctuning.evaluation import models, saved_results, user_tasks
from cctuning.evaluation.models import AnsweringLM
from cctuning.evaluation.run import Options, evaluate

CHOICES = ["XCOPA", "XNLI", "XStoryCloze"]


@pytest.fixture
def asked(monkeypatch) -> list:
    """Every request that reaches the model; with a number before them, the model is stopped there."""

    class Counting(AnsweringLM):
        limit = 10**9

        def loglikelihood(self, requests, disable_tqdm=False):
            for request in requests:
                if len(Counting.seen) == Counting.limit:
                    raise KeyboardInterrupt
                Counting.seen.append(request.args)
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    Counting.seen = type("Seen", (list,), {"model": Counting})()
    monkeypatch.setattr(models, "AnsweringLM", Counting)
    return Counting.seen


def figures(record) -> dict[str, dict]:
    return {name: task["metrics"] for name, task in record["tasks"].items()}


def kept(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text())


def test_a_stopped_run_goes_on_and_asks_nothing_twice(data, model, tmp_path, asked):
    options = Options(data=str(data), languages=["sw"], batch_size=1)
    whole = evaluate(str(model), tmp_path / "whole", options)
    total = len(asked)
    asked.clear()
    asked.model.limit = 52  # inside a task, after its first chunk
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(model), tmp_path / "cut", options)
    record = kept(tmp_path / "cut")
    assert record["status"] == "stopped" and 0 < len(record["tasks"]) < len(whole["tasks"])
    with (tmp_path / "cut" / "journal.jsonl").open("a") as journal:
        journal.write('\n["half a li')
    before, asked.model.limit = len(asked), 10**9
    resumed = evaluate(str(model), tmp_path / "cut", options)
    assert figures(resumed) == figures(whole)
    assert len(asked) - before < total - before + 9  # of the chunk that was cut off, at most, a few again
    assert resumed["status"] == "finished" and not (tmp_path / "cut" / "journal.jsonl").exists()
    count = len(asked)
    evaluate(str(model), tmp_path / "cut", options)  # finished: nothing is asked
    assert len(asked) == count


def refused(capsys, *argv) -> str:
    assert main(["evaluate", *map(str, argv)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1
    return said[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk that is always full")
def test_a_disk_that_is_full_while_answers_are_written(data, model, tmp_path, asked, capsys, monkeypatch):
    base = [model, "--data", data, "--benchmarks", *CHOICES, "--batch_size", 1, "--output"]
    assert main(["evaluate", *map(str, base), str(tmp_path / "whole")]) == 0
    total = len(asked)
    asked.clear()
    opened = Path.open
    times = []

    def full(self, *args, **options):
        if self.name != "journal.jsonl" or (not times.append(1) and len(times) < 4):
            return opened(self, *args, **options)
        return opened(Path("/dev/full"), *args, **options)

    monkeypatch.setattr(models.Path, "open", full)
    message = refused(capsys, *base, tmp_path / "out")
    assert f"{tmp_path}/out: cannot be written (No space left on device)" in message
    assert "what was scored is kept" in message
    assert len(kept(tmp_path / "out")["tasks"]) == 1
    monkeypatch.setattr(models.Path, "open", opened)
    assert main(["evaluate", *map(str, base), str(tmp_path / "out")]) == 0
    assert figures(kept(tmp_path / "out")) == figures(kept(tmp_path / "whole"))
    assert total < len(asked) <= total + models.CHUNK  # the answers that found no room, again


@pytest.mark.parametrize("writes", [0, 1, 2, 7])
def test_a_disk_that_is_full_while_results_are_written(writes, data, model, tmp_path, asked, capsys, monkeypatch):
    """At the very first file, the first table, the first samples, and in the middle."""
    base = [model, "--data", data, "--benchmarks", *CHOICES, "--output"]
    assert main(["evaluate", *map(str, base), str(tmp_path / "whole")]) == 0
    total = len(asked)
    asked.clear()
    write = files.write_atomically
    times = []

    def full(path, text):
        if len(times) == writes:
            path.with_name(f".{path.name}.partial").write_text(text[:10])  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        times.append(path)
        write(path, text)

    for module in (files, saved_results):
        monkeypatch.setattr(module, "write_atomically", full)
    message = refused(capsys, *base, tmp_path / "out")
    assert "cannot be written (No space left on device)" in message and str(tmp_path / "out") in message
    for module in (files, saved_results):
        monkeypatch.setattr(module, "write_atomically", write)
    assert main(["evaluate", *map(str, base), str(tmp_path / "out")]) == 0
    assert figures(kept(tmp_path / "out")) == figures(kept(tmp_path / "whole"))
    assert len(asked) == total  # every answer was in the journal


class Says:
    """A model with one answer."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked = answer, 0

    def generate_until(self, requests):
        self.asked += len(requests)
        return [self.answer] * len(requests)


@pytest.mark.parametrize("answer", ["กรุงเทพมหานคร", "one\u2028two\u0085three"])
@pytest.mark.parametrize("cut", range(5))
def test_a_journal_cut_anywhere_is_read(answer, cut, tmp_path):
    """Also inside a character; and what ends a line for Python alone ends none here."""
    asked = [Instance("generate_until", {}, (f"q{i}", {"until": []}), 0, metadata=("t", i, 1)) for i in range(3)]
    path = tmp_path / "journal.jsonl"
    models.Journal(Says(answer), path, 4).generate_until(asked)
    path.write_bytes(path.read_bytes()[: -2 - cut] if cut else path.read_bytes())
    again = Says(answer)
    assert models.Journal(again, path, 4).generate_until(asked) == [answer] * 3
    assert again.asked == bool(cut)


def test_other_data_do_not_mix_with_results(model, tmp_path, monkeypatch):
    """In a file of a suite, in a directory of rows, and in the items or the examples of any lm-eval task."""
    monkeypatch.setattr(user_tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    files = f"{{test: {tmp_path}/task/test.jsonl, train: {tmp_path}/task/train.jsonl}}"
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "own.yaml").write_text(
        f"task: own\noutput_type: multiple_choice\ndataset_path: json\ndataset_kwargs: {{data_files: {files}}}\n"
        "test_split: test\ntraining_split: train\nfewshot_split: train\nnum_fewshot: 1\n"
        "doc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\ndoc_to_choice: [w5, w6]\n"
    )

    def write(path: Path, count: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [  # the first three rows stay
            {"id": i, "prompt": f"w{i + 1} w2", "answer": "w5", "response": "w5", "lang": "en"} for i in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    for name, file, options in (
        ("suite", "data/paper/MKQA/en.jsonl", {"suite": "paper", "data": str(tmp_path / "data")}),
        ("rows", "rows/train.jsonl", {"rows": str(tmp_path / "rows")}),
        ("items", "task/test.jsonl", {"tasks": ["own"], "include_path": str(tmp_path / "task")}),
        ("examples", "task/train.jsonl", {"tasks": ["own"], "include_path": str(tmp_path / "task")}),
    ):
        for one in {file, "task/test.jsonl", "task/train.jsonl"}:
            write(tmp_path / one, 3)
        for _ in range(2):
            record = evaluate(str(model), tmp_path / f"out-{name}", Options(**options))
            assert [task["items"] for task in record["tasks"].values()] == [3]
        write(tmp_path / file, 5)
        with pytest.raises(UserError, match="was scored on other data"):
            evaluate(str(model), tmp_path / f"out-{name}", Options(**options))
