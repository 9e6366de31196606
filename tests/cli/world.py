"""A tiny model on disk, rows on disk, and the command line called in process: what the tests of the verbs share."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from cctuning.cli import main
from tests.conftest import tiny_llama
from tests.training.toys import rows, tokenizer

SMALL = {
    "connection": "gated",
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "gradient_checkpointing": False,
}


def records(count: int = 24, reference: str = "prompt_en") -> list[dict[str, Any]]:
    """The toys' rows as a file has them; answers in `x` words, so that no reference holds one."""
    made = []
    for row in rows(count):
        response = row["response"] and row["response"].replace("w", "x")
        made.append({"prompt": row["prompt"], "response": response, "lang": row["lang"]})
        made[-1][reference] = row["reference"]
    return made


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def write_csv(path: Path, lines: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in line.items()} for line in lines)
    return path


def write_parquet(path: Path, lines: list[dict[str, Any]]) -> Path:
    Dataset.from_list(lines).to_parquet(str(path))
    return path


def write_model(path: Path, chat: bool = False, **options: Any) -> Path:
    tiny_llama(layers=2, **options).save_pretrained(path)
    tokenizer(chat=chat).save_pretrained(path)
    return path


def write_recipe(path: Path, **options: Any) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **options}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def run_json(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The log steps of a run, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = ("runtime", "per_second", "flos")
    return [{key: value for key, value in line.items() if not any(word in key for word in clock)} for line in lines]


def refused(capsys: Any, *argv: object) -> str:
    """What `cctuning` says of bad input, having said it as it must: status 2, one line, no traceback."""
    capsys.readouterr()
    status = main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if "cctuning: error:" in line]
    assert status == 2, captured.err + captured.out
    assert len(said) == 1, captured.err
    assert captured.err.rstrip().endswith(said[0]), captured.err  # nothing after it
    assert "Traceback" not in captured.err
    return said[0]


def done(*argv: object) -> None:
    assert main([str(argument) for argument in argv]) == 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = [*sorted((run / "model").glob("*.safetensors"))]
    assert files
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def logged(run: Path) -> list[dict[str, Any]]:
    """The steps' metrics."""
    return [line for line in metrics(run) if "loss" in line]
