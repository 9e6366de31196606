"""A small data directory of our own making, laid out as `--data` expects, and stub models."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.group import Group
from lm_eval.api.model import LM

from cctuning.evaluation.suites import SOURCE

COUNT = 6


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def source_rows(dataset: str, language: str) -> list[dict[str, Any]]:
    """Rows in the columns that lm-eval's tasks read, in the toy tokenizer's words."""
    made = []
    for i in range(COUNT):
        if dataset.endswith("xcopa"):
            row = {"premise": f"w{i} w{i + 1}.", "choice1": f"w{i} w3", "choice2": f"w{i} w4"}
            made.append({**row, "question": ("cause", "effect")[i % 2], "label": i % 2, "idx": i, "changed": False})
        elif dataset.endswith("xstory_cloze"):
            row = {f"input_sentence_{n}": f"w{n} w{i}" for n in range(1, 5)}
            row |= {"story_id": str(i), "sentence_quiz1": f"w{i} w5", "sentence_quiz2": f"w{i} w6"}
            made.append({**row, "answer_right_ending": 1 + i % 2})
        elif dataset.endswith("mgsm"):
            made.append({"question": f"w{i} w2", "answer": None, "answer_number": i, "equation_solution": None})
        elif dataset.endswith("xnli"):
            made.append({"premise": f"w{i} w1", "hypothesis": f"w{i} w2", "label": i % 3})
        else:
            row = {"sentence": f"w{i} _ w7", "option1": f"w{i}", "option2": "w9"}
            made.append({**row, "answer": str(1 + i % 2)})
    return made


def data_directory(root: Path, languages: dict[str, list[str]] | None = None) -> Path:
    """All five source benchmarks and the paper's six, in English and Swahili (XWinograd: English and French)."""
    for one in SOURCE:
        own = ["en", "fr"] if one.name == "XWinograd" else ["en", "sw"]
        splits = ["train", one.split] if one.name == "MGSM" else [one.split]
        splits += ["validation"] if one.name == "XCOPA" else []
        lines = ["---", "configs:"]
        for language in (languages or {}).get(one.name, own):
            lines += [f"- config_name: '{language}'", "  data_files:"]
            for split in splits:
                name = f"{split}/{language}.jsonl.gz"
                write(root / one.dataset / name, source_rows(one.dataset, language))
                lines += [f"  - split: {split}", f"    path: {name}"]
        (root / one.dataset / "README.md").write_text("\n".join([*lines, "---", ""]))
    answers: dict[str, list[Any]] = {
        "XNLI": ["1", "2", "3"], "XStoryCloze": ["1", "2"], "MMMLU": ["A", "B", "C", "D"],
        "XQuAD": ["w1 w2", "w3"], "MKQA": [["w1", "w2 w3"], ["w4"]], "XLSum": ["w1 w2 w3", "w4 w5 w6"],
    }  # fmt: skip
    for name, options in answers.items():
        for language in ("en", "sw"):
            rows = [
                {"id": i, "lang": language, "prompt": f"w{i} w{i + 1}", "answer": options[i % len(options)]}
                for i in range(COUNT)
            ]
            write(root / "paper" / name / f"{language}.jsonl.gz", rows)
    return root


class Stub(LM):
    """A model that knows every answer (`right`), or draws at random."""

    def __init__(self, task: Any, right: bool, seed: int = 0) -> None:
        super().__init__()
        of = task.get_all_tasks() if isinstance(task, Group) else [task]
        self.tasks, self.right, self.calls = {one.task_name: one for one in of}, right, 0
        self.generator = torch.Generator().manual_seed(seed)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.calls += len(requests)
        if not self.right:
            return [(float(torch.rand(1, generator=self.generator)) - 1, False) for _ in requests]
        return [(0.0 if request.idx == self._gold(request) else -9.0, False) for request in requests]

    def _gold(self, request: Any) -> int:
        task = self.tasks[request.task_name]
        target = task.doc_to_text(request.doc) if task.multiple_input else task.doc_to_target(request.doc)
        return task.doc_to_choice(request.doc).index(target) if isinstance(target, str) else int(target)

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.calls += len(requests)
        return [self._said(request) if self.right else "?" for request in requests]

    def _said(self, request: Any) -> str:
        return str(self.tasks[request.task_name].doc_to_target(request.doc))

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError("lm-eval's interface has it; no benchmark here asks for it")
