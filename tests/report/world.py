"""Evaluation directories with figures of our choosing, as `cctuning evaluate` writes them, and a look at a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "br", "hr", "img", "input"}


def write_evaluation(path: Path, model: str, right: dict[str, list[int]], prompt: str = "Q {i}?") -> Path:
    """Results of one benchmark: by language, 1 or 0 an item."""
    (path / "samples").mkdir(parents=True)
    tasks = {}
    for language, flags in right.items():
        name = f"paper_mkqa_{language}"
        tasks[name] = {
            "benchmark": "paper MKQA",
            "language": language,
            "version": "1",
            "items": len(flags),
            "metric": "f1",
            "chance": None,
            "metrics": {"f1": {"value": sum(flags) / len(flags), "stderr": 0.0}},
        }
        lines = [
            {
                "id": i,
                "hash": f"h{i}",
                "prompt": prompt.format(i=i),
                "prompt_hash": f"p{i}",
                "target": "a",
                "response": {"said": f"{path.name} says {flag}", "scored": str(flag)},
                "metrics": {"f1": float(flag)},
            }
            for i, flag in enumerate(flags)
        ]
        (path / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record: dict[str, Any] = {
        "format": 1,
        "status": "finished",
        "planned": list(tasks),
        "model": {"name": model, "fingerprint": path.name, "training_seed": 0},
        "settings": {"mode": "student", "chat": False},
        "versions": {},
        "tasks": tasks,
    }
    (path / "results.json").write_text(json.dumps(record))
    return path


class Look(HTMLParser):
    """What a page is made of: tags in order with attributes, headings, text; and whether its tags match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.levels: list[int] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "h4"):
            self.levels.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)
